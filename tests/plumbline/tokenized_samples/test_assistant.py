"""What the assistant wrote: marked by the template, or derived from the chat's beginnings, cut along with windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.artifact import read_json
from plumbline.tokenized_samples.assistant import assistant_spans, cut, written_characters
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import read_samples
from plumbline.tokenized_samples.summary import summary as summary_of
from tests.helpers.checkpoint import checkpoint
from tests.helpers.tokenizer import TEMPLATE, make_tokenizer

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
STRIPPING = (  # reasoning of earlier turns is taken out: beginnings of the chat are no beginnings of the whole
    "{% for m in messages %}{% set c = m['content'] if loop.last else m['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Wie geht's?"},
    {"role": "assistant", "content": "Gut. ünd dir?"},
    {"role": "user", "content": "Auch."},
    {"role": "assistant", "content": "Schön"},
]


def spans_and_text(template: str, chat: list[dict[str, str]]) -> tuple[Any, list[str]]:
    """Spans, and the text that each covers."""
    tokenizer = make_tokenizer(template=template)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    spans = assistant_spans(tokenizer, template, chat, text, ids)
    if spans is None:
        return None, []
    return spans, [tokenizer.decode(ids[a:b]) for a, b in spans.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Gut. ünd dir?<|im_end|>", "Schön<|im_end|>"]),
        (MARKED, ["Gut. ünd dir?<|im_end|>", "Schön<|im_end|>"]),
        (LLAMA_2, ["Gut. ünd dir? </s>", "Schön </s>"]),
        (TEMPLATE, ["Gut. ünd dir?</s>", "Schön</s>"]),  # no generation prompt: from the content on
    ],
    ids=["chatml", "marked", "llama-2", "plain"],
)
def test_what_the_assistant_wrote(template: str, expected: list[str]) -> None:
    spans, texts = spans_and_text(template, CHAT)
    assert spans.dtype == np.int32 and texts == expected


def test_derived_spans_are_those_that_a_marked_template_gives() -> None:
    derived, _ = spans_and_text(CHATML, CHAT)
    marked, _ = spans_and_text(MARKED, CHAT)
    np.testing.assert_array_equal(derived, marked)


def test_marked_spans_are_those_of_transformers() -> None:
    tokenizer = make_tokenizer(template=MARKED)
    given = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    spans, _ = spans_and_text(MARKED, CHAT)
    mask = np.zeros(len(given["input_ids"]), int)
    for start, stop in spans.reshape(-1, 2):
        mask[start:stop] = 1
    assert mask.tolist() == given["assistant_masks"] and 0 < mask.sum() < len(mask)


def test_a_chat_that_begins_with_the_assistant_or_has_none() -> None:
    assert spans_and_text(CHATML, CHAT[1:])[1] == ["Gut. ünd dir?<|im_end|>", "Schön<|im_end|>"]
    assert spans_and_text(CHATML, CHAT[:1])[0].tolist() == []
    assert spans_and_text(MARKED, CHAT[:1])[0].tolist() == []


@pytest.mark.parametrize(
    ("template", "chat"),
    [
        (STRIPPING, [CHAT[0], {"role": "assistant", "content": "<think>hm</think>ja"}, *CHAT[2:]]),
        (TEMPLATE, [CHAT[0], {"role": "assistant", "content": "assistant"}]),  # in its header, too
        ("{{ messages[0]['content'] }}", CHAT),  # leaves the assistant out
        ("{{ messages | length }}" + CHATML, CHAT),
    ],
    ids=["earlier turns change", "content is not alone", "content is missing", "beginnings differ"],
)
def test_what_cannot_be_told_for_certain_is_not_guessed(template: str, chat: list[dict[str, str]]) -> None:
    assert spans_and_text(template, chat)[0] is None


def test_a_template_that_refuses_beginnings_gives_no_spans() -> None:
    def render(messages: Any, prompt: bool) -> str | None:
        return None if len(messages) < len(CHAT) else "whole"

    assert written_characters(CHAT, "whole", render) is None


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_cut_is_cutting_the_mask(mask: list[bool], start: int, length: int, shift: int) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int))).astype(np.int32)
    piece = mask[start : start + length]
    found = np.zeros(shift + length, bool)
    spans = cut(edges, start, start + length, shift)
    for a, b in spans.reshape(-1, 2):
        assert a < b
        found[a:b] = True
    assert found.tolist() == [False] * shift + piece + [False] * (length - len(piece))


def test_spans_are_stored_and_cut_along_with_windows(tokenizer_folder: Any, corpus_of: Any, tmp_path: Any) -> None:
    folder = tokenizer_folder(template=CHATML)
    odd = [CHAT[0], {"role": "assistant", "content": "x"}]
    corpus = corpus_of({"a": [CHAT, "no chat at all, just text", odd]})
    out = tmp_path / "out"
    out.mkdir()
    params = TokenizeParams(max_length=24, min_tokens=1, splits={"tuning": 0, "report": 0}, workers=1)
    build_tokenized_samples(params, checkpoint(folder), corpus, out)
    summary = summary_of(out)
    assert summary["chats"] == {"documents": 2, "without_assistant_spans": 0}
    tokenizer = make_tokenizer(template=CHATML)
    rows = read_samples(out).to_pylist()
    by_document: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_document.setdefault(row["doc_id"], []).append(row)
    chat = next(rows for rows in by_document.values() if "Wie" in tokenizer.decode(rows[0]["input_ids"]))
    assert len(chat) > 3  # windows, each with the prefix in front
    written: list[int] = []
    for row in chat:
        assert row["input_ids"][0] == 0 and row["n_special"] == 1
        for start, stop in np.reshape(row["assistant_spans"], (-1, 2)):
            assert 1 <= start < stop <= row["n_tokens"]
            written += row["input_ids"][start:stop]
    assert tokenizer.decode(written) == "Gut. ünd dir?<|im_end|>Schön<|im_end|>"
    texts = [row["assistant_spans"] for row in rows if "just" in tokenizer.decode(row["input_ids"])]
    assert texts == [None]


def test_chats_without_spans_are_counted(tokenizer_folder: Any, corpus_of: Any, tmp_path: Any) -> None:
    folder = tokenizer_folder(template=TEMPLATE)
    unclear = [CHAT[0], {"role": "assistant", "content": "assistant"}]
    corpus = corpus_of({"a": [CHAT, unclear, "text and more text"]})
    out = tmp_path / "out"
    out.mkdir()
    params = TokenizeParams(max_length=64, min_tokens=1, splits={"tuning": 0, "report": 0}, workers=1)
    build_tokenized_samples(params, checkpoint(folder), corpus, out)
    accounting = read_json(out / "accounting.json")
    assert accounting["chats"] == {"documents": 2, "without_assistant_spans": 1}
    shard = accounting["shards"][0]
    assert (shard["chats"], shard["unmasked"]) == (2, 1)
    spans = pq.read_table(out / "shards" / f"{shard['shard']}.parquet")["assistant_spans"]
    assert spans.null_count == 2
