"""Whatever bytes a file holds, every row comes out as a document or with a reason."""

from __future__ import annotations

import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import REASONS, Rejected

READER = RowReader("s/f", "d", 200)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(alphabet=st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "messages", "role", "content", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def check(found: list[Document | Rejected]) -> None:
    assert [item.row for item in found] == list(range(len(found)))
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason in REASONS
            item.detail.encode()  # can be written
        else:
            assert len(item.doc_id) == 64


@given(st.binary(max_size=2000))
def test_random_bytes(data: bytes) -> None:
    found = list(READER.json_lines(io.BytesIO(data)))
    check(found)
    assert len(found) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


@given(st.lists(JSON, max_size=6), st.booleans())
def test_random_objects(values: list[Any], ascii_only: bool) -> None:
    lines = [json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for value in values]
    found = list(READER.json_lines(io.BytesIO(b"\n".join(lines))))
    check(found)
    assert len(found) == len(values)
    for value, item in zip(values, found, strict=True):
        text = value.get("text") if isinstance(value, dict) and value.get("messages") is None else None
        usable = isinstance(text, str) and text.strip() != "" and not any(0xD800 <= ord(c) < 0xE000 for c in text)
        if usable and len(text.encode()) <= 200:  # type: ignore[union-attr]
            assert isinstance(item, Document) and item.text == text


def test_a_line_longer_than_any_document_is_not_held() -> None:
    limit = 8 * 200 + (1 << 16)
    data = b'"' + b"x" * (3 * limit) + b'"\n{"text": "next"}\n' + b"y" * limit
    found = list(READER.json_lines(io.BytesIO(data)))
    assert [type(item).__name__ for item in found] == ["Rejected", "Document", "Rejected"]
    assert isinstance(found[0], Rejected) and found[0].reason == "oversize"
    exact = b'{"text": "a"}'.ljust(limit - 1) + b"\n"  # as long as a line may be
    assert isinstance(next(READER.json_lines(io.BytesIO(exact))), Document)
