"""Chats in the forms of public sets; a row with two texts loses none of them uncounted."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.raw_corpus.chats import without_nulls
from plumbline.raw_corpus.document import Document, document_id
from plumbline.raw_corpus.params import ChatFields
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import REASONS, Rejected
from plumbline.raw_corpus.sources.directory import read_file

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": None}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def reader(read: str | None = None, **chat: Any) -> RowReader:
    return RowReader("s/f", "d", 10_000, read=read, chats=ChatFields(**chat))


def read(row: Any, **options: Any) -> Document | Rejected:
    return reader(**options).value(0, row)


def messages(result: Document | Rejected) -> list[dict[str, Any]]:
    assert isinstance(result, Document), result
    return result.chat()[0]


SAME = {
    "messages": {"messages": [USER, ASSISTANT]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
    "nothing but parts": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in (USER, ASSISTANT)]
    },
    "parts without a type": {"messages": [{"role": "user", "content": ["Hi"]}, ASSISTANT]},
    "from and value": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    "role under from": {"conversation": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]},
    "instruction and output": {"instruction": "Hi", "input": "", "output": "Ho"},
    "instruction and response": {"instruction": "Hi", "context": None, "response": "Ho", "category": "qa"},
    "prompt and completion": {"prompt": "Hi", "completion": "Ho"},
    "a sequence as datasets gives it": {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}},
    "nothing else is filled in": {
        "text": None,
        "messages": [{**USER, "name": None, "tool_calls": None}, {**ASSISTANT, "tool_calls": []}],
        "conversations": [],
        "tools": "",
    },
    "a blank text": {"text": " \n", "messages": [USER, ASSISTANT]},
    "the prompt again": {"prompt": "Hi", "messages": [USER, ASSISTANT]},
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_of_a_chat_is_the_same_document(form: str) -> None:
    document = read(SAME[form])
    assert messages(document) == [USER, ASSISTANT]
    assert isinstance(document, Document) and document.more is None
    assert document.doc_id == document_id(None, (USER, ASSISTANT))


@pytest.mark.parametrize("form", ["messages", "nothing but parts", "from and value", "instruction and output"])
def test_parquet_gives_the_same_document(tmp_path: Path, form: str) -> None:
    other = {"messages": [{"role": "user", "content": "x", "extra": 3}]} if form == "messages" else SAME[form]
    pq.write_table(pa.Table.from_pylist([SAME[form], other]), tmp_path / "f.parquet")  # Arrow fills in `extra: null`
    first, _ = read_file(tmp_path / "f.parquet", ".parquet", reader())
    assert messages(first) == [USER, ASSISTANT] and first == read(SAME[form])


def test_the_parts_of_a_message_are_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages(read({"messages": [{"role": "user", "content": parts}]}))[0]["content"] == "a\nb"
    about = read({"instruction": "Sum up", "input": "A text", "output": "x", "system": "Be brief"})
    assert [(m["role"], m["content"]) for m in messages(about)] == [
        ("system", "Be brief"), ("user", "Sum up\n\nA text"), ("assistant", "x"),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "absent"])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tool_calls_are_kept_for_the_template(content: str | None, tools: Any) -> None:
    calling = {name: value for name, value in (CALLING | {"content": content}).items() if value != "absent"}
    result = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "3"}
    document = read({"messages": [USER, calling, result], "tools": tools, "system": "Call."})
    assert isinstance(document, Document)
    system = {"role": "system", "content": "Call."}
    assert document.chat() == ([system, USER, CALLING, result], [TOOL])
    assert document.messages == (system, USER, {"role": "assistant", "content": ""}, {"role": "tool", "content": "3"})
    plain = read({"messages": [system, USER, {"role": "assistant", "content": ""}, {"role": "tool", "content": "3"}]})
    assert isinstance(plain, Document) and plain.doc_id != document.doc_id
    only = read({"messages": [{**CALLING, "content": None}]})
    assert messages(only) == [CALLING], "a call is content"


def test_names_of_a_source_are_its_own() -> None:
    turns = [{"speaker": "bot", "utterance": "Ho"}, {"speaker": "human", "utterance": "Hi"}]
    names = {"messages": "dialog", "role": "speaker", "content": "utterance", "roles": {"bot": "assistant"}}
    assert messages(read({"dialog": turns}, **names)) == [ASSISTANT, USER]
    answered = {"question": "Hi", "answer": "Ho", "about": "sheep"}
    asked = {"role": "user", "content": "Hi\n\nsheep"}
    assert messages(read(answered, user="question", context="about", assistant="answer")) == [asked, ASSISTANT]
    assert messages(read(answered, user="question")) == [USER]
    assert messages(read({"chosen": [USER, ASSISTANT], "rejected": [USER]}, messages="chosen")) == [USER, ASSISTANT]


REFUSED = {
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "wrong_type", "'image_url'"),
    "null without a call": ({"messages": [USER, {"role": "assistant", "content": None}]}, "wrong_type", "no such|None"),
    "a role unknown": ({"conversations": [{"from": "moon", "value": "x"}]}, "wrong_type", r"'moon'.*chat\.roles"),
    "tools that are none": ({"messages": [USER], "tools": "x"}, "wrong_type", "tools: neither a list"),
    "calls that are none": ({"messages": [{**USER, "tool_calls": 3}]}, "wrong_type", "expected a list of objects"),
    "bytes in a call": ({"messages": [{**CALLING, "x": b"y"}]}, "wrong_type", "cannot be JSON"),
    "not a number": ({"messages": [{**CALLING, "x": float("nan")}]}, "wrong_type", "cannot be JSON"),
    "text and messages": ({"text": "a", "messages": [USER]}, "ambiguous", "`read: text` or "),
    "two chats": ({"messages": [USER], "conversations": [USER]}, "ambiguous", r"both there; .*chat\.messages"),
    "two contents": ({"messages": [{**USER, "value": "other"}]}, "ambiguous", "content and value differ"),
    "two roles": ({"messages": [{**USER, "from": "gpt"}]}, "ambiguous", "role and from differ"),
    "two answers": ({"instruction": "a", "output": "b", "response": "c"}, "ambiguous", "output and response differ"),
    "two systems": (
        {"messages": [{"role": "system", "content": "a"}, USER], "system": "b"}, "ambiguous", "another one among them",
    ),
    "blank": ({"instruction": " ", "output": "x"}, "empty", "no message has content"),
    "fields of other lengths": ({"messages": {"role": ["user"], "content": []}}, "wrong_type", "different lengths"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_clear_is_rejected_with_the_reason(kind: str) -> None:
    row, reason, detail = REFUSED[kind]
    result = read(row)
    assert isinstance(result, Rejected) and result.reason == reason
    assert re.search(detail, result.detail), result.detail


def test_a_source_says_which_of_two_texts_is_meant() -> None:
    row = {"text": "rendered", "messages": [USER]}
    assert messages(read(row, read="chat")) == [USER]
    document = read(row, read="text")
    assert isinstance(document, Document) and document.text == "rendered"
    assert messages(read({"text": None, "messages": [USER]}, read="text")) == [USER]
    document = read({"text": "only", "messages": []}, read="chat")
    assert isinstance(document, Document) and document.text == "only"


KEYS = ["text", "messages", "role", "content", "x"]
VALUES = st.one_of(
    st.text(max_size=4),
    st.none(),
    st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text(min_size=1, max_size=3)}), max_size=2),
)


@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=6))
def test_no_text_of_a_doubled_key_is_lost_uncounted(pairs: list[tuple[str, Any]]) -> None:
    """Every text under `text`, and every chat under `messages`, is in the row's document, or the row is rejected."""
    line = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    [result] = reader().json_lines(io.BytesIO(line.encode()))
    if isinstance(result, Rejected):
        return
    texts = {value for key, value in pairs if key == "text" and isinstance(value, str) and value.strip()}
    chats = {json.dumps(value, sort_keys=True) for key, value in pairs if key == "messages" and value}
    if result.text is not None:
        assert texts == {result.text} and not chats
    else:
        assert not texts and len(chats) == 1


@given(st.data())
def test_doubled_keys_within_a_chat_are_ambiguous(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(["role", "content", "tool_calls"]))
    first, second = data.draw(st.lists(st.text(min_size=1, max_size=3), min_size=2, max_size=2))
    message = {"role": '"user"', "content": '"x"'} | {key: json.dumps(first)}
    fields = ", ".join(f'"{name}": {value}' for name, value in message.items())
    line = f'{{"messages": [{{{fields}, "{key}": {json.dumps(second)}}}]}}'
    [result] = reader().json_lines(io.BytesIO(line.encode()))
    if first == second:
        assert not (isinstance(result, Rejected) and result.reason == "ambiguous")
    else:
        assert isinstance(result, Rejected) and result.reason == "ambiguous", line


TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), st.text(max_size=6)), min_size=1)


@given(TURNS)
def test_any_chat_is_one_document_in_every_form(turns: list[tuple[str, str]]) -> None:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    forms: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"messages": [{"content": [{"type": "text", "text": text}], "role": role} for role, text in turns]},
        {"conversations": [{"from": names.get(role, role), "value": text} for role, text in turns]},
        {"conversation": {"from": [role for role, _ in turns], "value": [text for _, text in turns]}},
        {"text": None, "messages": [{"role": r, "content": t, "name": None, "tool_calls": []} for r, t in turns]},
    ]
    results = [read(form) for form in forms]
    assert all(result == results[0] for result in results)
    if any(text.strip() for _, text in turns):
        assert messages(results[0]) == forms[0]["messages"]
    else:
        assert isinstance(results[0], Rejected) and results[0].reason == "empty"


NAMES = [
    "text", "messages", "conversations", "conversation", "role", "content", "from", "value", "instruction", "input",
    "output", "response", "prompt", "completion", "system", "tools", "tool_calls", "function", "arguments", "type",
]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
MESSAGE = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["user", "human", "a"]) | LEAVES, max_size=4)
ANY = st.recursive(
    LEAVES | MESSAGE | st.lists(MESSAGE, max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), ANY, max_size=5))
def test_any_row_is_a_document_or_has_a_reason(row: dict[str, Any]) -> None:
    result = read(row)
    if isinstance(result, Rejected):
        assert result.reason in REASONS
        result.detail.encode()
    elif result.messages is not None:
        turns, tools = result.chat()
        assert len(turns) == len(result.messages) and isinstance(tools, list)
        assert all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in turns)
        assert [{"role": m["role"], "content": m["content"]} for m in turns] == list(result.messages)


def test_nulls_of_arrow_are_left_out_at_any_depth() -> None:
    assert without_nulls({"a": None, "b": [{"c": None, "d": 0}], "e": ""}) == {"b": [{"d": 0}], "e": ""}
