"""Controls: what they change and what they leave, and that the oracle holds no evaluated document."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from plumbline.evaluation.held_out import choose
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.params import MixedParams, SchemeParams
from plumbline.study.controls import Oracle, nonsense, without_calibration
from tests.helpers.study import VOCABULARY, Small


@pytest.mark.parametrize(
    ("scheme", "bare"),
    [
        (
            {
                "method": "gptq",
                "weight_bits": 3,
                "group_size": 16,
                "act_order": True,
                "range": "mse",
                "symmetric": False,
            },
            {"method": "rtn", "weight_bits": 3, "group_size": 16, "range": "mse", "symmetric": False},
        ),
        (
            {"method": "gptq", "weight_bits": 3, "group_size": 16, "range": "hessian", "signed_scale": True},
            {"method": "rtn", "weight_bits": 3, "group_size": 16, "range": "mse", "signed_scale": True},
        ),
        ({"method": "rtn", "weight_bits": 4, "transform": "awq"}, {"method": "rtn", "weight_bits": 4}),
        (
            {
                "method": "rtn",
                "weight_bits": 8,
                "activations": ActivationParams(range="mse"),
                "transform": "smoothquant",
            },
            {"method": "rtn", "weight_bits": 8, "activations": ActivationParams(dynamic=True)},
        ),
        (
            {"method": "rtn", "kv_cache": {"strategy": "attn_head", "range": "percentile"}},
            {"method": "rtn", "kv_cache": {"strategy": "attn_head", "range": "unit"}},
        ),
        (
            {"method": "gptq", "mixed": MixedParams(average_bits=3.5)},
            {"method": "rtn", "weight_bits": 3, "range": "mse", "signed_scale": True},
        ),
    ],
)
def test_a_scheme_without_calibration_keeps_its_grid_and_reads_nothing(scheme: dict, bare: dict) -> None:
    found = without_calibration(SchemeParams(**scheme))
    assert found == SchemeParams(**bare) and found.reads == ()


def test_a_scheme_that_reads_nothing_needs_no_control() -> None:
    assert without_calibration(SchemeParams(method="rtn", weight_bits=4)) is None
    dynamic = SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams(dynamic=True))
    assert without_calibration(dynamic) is None


def test_nonsense_is_as_long_as_what_it_stands_for_and_uniform_behind_the_prefix() -> None:
    like = [[7, 8, *([5] * length)] for length in (1, 30, 2000)]
    made = nonsense(like, 2, VOCABULARY, seed=1)["input_ids"].to_pylist()
    assert [len(ids) for ids in made] == [3, 32, 2002]
    assert all(ids[:2] == [7, 8] for ids in made)
    counts = np.bincount(made[2][2:], minlength=VOCABULARY)
    assert len(counts) == VOCABULARY
    # Chi-squared of 95 degrees of freedom: above 140 or below 60 in fewer than 1 case in 500.
    assert 60 < ((counts - 2000 / VOCABULARY) ** 2 / (2000 / VOCABULARY)).sum() < 140
    assert nonsense(like, 2, VOCABULARY, seed=1).equals(nonsense(like, 2, VOCABULARY, seed=1))
    assert not nonsense(like, 2, VOCABULARY, seed=1).equals(nonsense(like, 2, VOCABULARY, seed=2))


def test_nonsense_of_nothing_but_special_tokens_gives_samples_that_differ() -> None:
    made = nonsense([[1]] * 20, 1, VOCABULARY, seed=0)
    assert made.num_rows == 20 and len(set(made["sample_id"].to_pylist())) == 20


def test_the_oracle_is_of_the_report_split_but_of_no_document_that_is_evaluated(small: Small) -> None:
    held_out = choose(small.sources.samples, 60, 1)
    oracle = Oracle(small.sources.samples, held_out)
    assert oracle.lacks(5) is None
    drawn = [oracle.draw(5, seed) for seed in range(10)]
    rows = pq.read_table(small.sources.samples / "shards").to_pylist()
    of = {row["sample_id"]: row for row in rows}
    evaluated = set(held_out.doc_ids)
    for table in drawn:
        found = [of[name] for name in table["sample_id"].to_pylist()]
        assert len({row["sample_id"] for row in found}) == 5
        assert {row["split"] for row in found} == {"report"}
        assert not evaluated & {row["doc_id"] for row in found}
        assert [row["input_ids"] for row in found] == table["input_ids"].to_pylist()
    assert len({tuple(table["sample_id"].to_pylist()) for table in drawn}) > 5


def test_the_oracle_mixes_domains_as_the_evaluated_tokens_do(small: Small) -> None:
    held_out = choose(small.sources.samples, 60, 1)
    oracle = Oracle(small.sources.samples, held_out)
    tokens = {
        d: sum(len(i) for i, e in zip(held_out.tokens, held_out.domains, strict=True) if e == d) for d in oracle.domains
    }
    table = oracle.table.to_pylist()
    mean = {d: np.mean([r["n_tokens"] for r in table if r["domain"] == d]) for d in oracle.domains}
    ideal = {d: tokens[d] / mean[d] for d in oracle.domains}
    domain_of = {row["sample_id"]: row["domain"] for row in table}
    drawn = [domain_of[name] for name in oracle.draw(8, 0)["sample_id"].to_pylist()]
    for domain in oracle.domains:
        assert abs(drawn.count(domain) - 8 * ideal[domain] / sum(ideal.values())) < 1


def test_an_oracle_that_lacks_documents_says_so(small: Small) -> None:
    assert "every document of the report split is evaluated" in str(
        Oracle(small.sources.samples, choose(small.sources.samples, None, None)).lacks(2)
    )
    oracle = Oracle(small.sources.samples, choose(small.sources.samples, 60, 1))
    assert "that are not evaluated, and there are" in str(oracle.lacks(500))
