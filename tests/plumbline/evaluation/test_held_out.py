"""Which samples are evaluated: from content alone, counted, and never twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.evaluation.held_out import HeldOut, batches, choose
from tests.helpers.tokenized_samples import write_samples


@pytest.fixture(scope="module")
def four_documents(tmp_path_factory):
    rng = np.random.default_rng(3)
    rows = [
        {"doc_id": doc_id, "split": split, "domain": domain, "input_ids": rng.integers(0, 50, length)}
        for doc_id, split, domain, length in [
            ("d", "report", "x", 10),
            ("b", "report", "x", 20),
            ("b", "report", "x", 21),
            ("b", "report", "x", 22),
            ("a", "report", "y", 5),
            ("c", "pool", "x", 99),
            ("e", "tuning", "x", 99),
            ("c2", "report", "x", 30),
        ]
    ]
    return write_samples(tmp_path_factory.mktemp("samples"), rows)


def test_everything_without_limits(four_documents):
    held_out = choose(four_documents, None, None)
    assert held_out.doc_ids == ["b", "b", "b", "c2", "d", "a"] and held_out.domains == ["x"] * 5 + ["y"]
    assert [len(ids) for ids in held_out.tokens] == [20, 21, 22, 30, 10, 5]  # reading order within a document
    assert held_out.choice["x"] == {
        "documents": 3,
        "samples": 5,
        "tokens": 103,
        "documents_available": 3,
        "samples_available": 5,
        "tokens_available": 103,
    }


def test_documents_in_order_of_id_until_there_are_enough_tokens(four_documents):
    assert choose(four_documents, 63, None).doc_ids == ["b", "b", "b", "a"]  # whole documents: b has 63 tokens
    held_out = choose(four_documents, 64, None)
    assert held_out.doc_ids == ["b", "b", "b", "c2", "a"]
    assert held_out.choice["x"]["tokens"] == 93 and held_out.choice["x"]["tokens_available"] == 103


def test_windows_of_a_document_by_sample_id(four_documents):
    every = choose(four_documents, None, None)
    lowest = min(every.sample_ids[:3])
    held_out = choose(four_documents, None, 1)
    assert held_out.doc_ids == ["b", "c2", "d", "a"] and held_out.sample_ids[0] == lowest
    assert held_out.choice["x"]["samples"] == 3 and held_out.choice["x"]["samples_available"] == 5
    assert held_out.digest != every.digest


def test_tokens_beyond_the_first_of_a_sample_do_not_count(four_documents):
    held_out = choose(four_documents, 16, 1, tokens_per_sample=8)  # whole windows: b alone has more than 16
    assert held_out.doc_ids == ["b", "c2", "a"]
    whole = choose(four_documents, None, 1)
    of = dict(zip(whole.sample_ids, whole.tokens, strict=True))
    for name, ids in zip(held_out.sample_ids, held_out.tokens, strict=True):
        np.testing.assert_array_equal(ids, of[name][:8])
    assert held_out.choice["x"]["tokens"] == 16 and held_out.choice["y"]["tokens"] == 5


def test_an_empty_report_split_says_what_to_do(tmp_path):
    rows = [{"doc_id": "a", "split": "pool", "domain": "x", "input_ids": [1, 2]}]
    with pytest.raises(ValueError, match=r"tokenize\.splits\.report"):
        choose(write_samples(tmp_path, rows), None, None)


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=40), batch_tokens=st.integers(1, 300))
def test_batches_hold_every_token_once(lengths, batch_tokens):
    tokens = [1000 * row + np.arange(length) for row, length in enumerate(lengths)]
    names = [str(row) for row in range(len(lengths))]
    seen = []
    for batch in batches(HeldOut(names, names, names, tokens, {}), batch_tokens):
        size = batch.input_ids.numel()
        assert size <= batch_tokens or len(batch.rows) == 1
        assert batch.predicted.sum() == sum(lengths[row] - 1 for row in batch.rows)
        expected = [token for row in batch.rows for token in tokens[row][1:]]  # the first is predicted by nothing
        assert batch.targets.tolist() == expected
        for line, row in zip(batch.input_ids, batch.rows, strict=True):
            assert line[: lengths[row]].tolist() == tokens[row].tolist()
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))
