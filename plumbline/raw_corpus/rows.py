"""Rows to documents: a row becomes a document or is rejected with a reason, by the same rules for every format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.source_file import Rejected


@dataclass(frozen=True)
class RowReader:
    """Turns rows of a source into documents."""

    source: str
    domain: str
    max_document_bytes: int
    column: str = "text"

    def text(self, row: int, value: str | bytes, group: str = "") -> Document | Rejected:
        """A document from a text, given as str or as UTF-8 bytes."""
        try:
            text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
            size = len(value) if isinstance(value, bytes) else len(value.encode())
        except UnicodeError as error:
            return Rejected(row, "not_utf8", _not_utf8(error))
        if size > self.max_document_bytes:
            return Rejected(row, "oversize", self._oversize(size))
        if not text.strip():
            return Rejected(row, "empty", "no character but white space")
        return Document(self.domain, self.source, row, text=text, group=group)

    def messages(self, row: int, value: Any) -> Document | Rejected:
        """A document from a chat: a list of {"role": str, "content": str}.

        A message with further fields (tool calls, a name) is rejected, because without them the chat template would
        render less than the model reads in production.
        """
        if isinstance(value, bytes):
            return Rejected(row, "not_utf8", "messages: a role or a content is not UTF-8")
        if not isinstance(value, list):
            return Rejected(row, "wrong_type", f"messages: expected a list, found {type(value).__name__}")
        messages: list[dict[str, str]] = []
        for i, message in enumerate(value):
            if not isinstance(message, dict):
                return Rejected(row, "wrong_type", f"messages[{i}]: expected an object, found {type(message).__name__}")
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    kind = type(message.get(key)).__name__ if key in message else "no such field"
                    return Rejected(row, "wrong_type", f"messages[{i}].{key}: expected a string, found {kind}")
            extra = sorted(str(k) for k, v in message.items() if k not in ("role", "content") and v is not None)
            if extra:
                return Rejected(row, "wrong_type", _shown(f"messages[{i}]: fields that no chat here may have: {extra}"))
            messages.append({"role": message["role"], "content": message["content"]})
        try:
            size = sum(len(part.encode()) for message in messages for part in message.values())
        except UnicodeError as error:
            return Rejected(row, "not_utf8", _not_utf8(error))
        if size > self.max_document_bytes:
            return Rejected(row, "oversize", self._oversize(size))
        if not any(message["content"].strip() for message in messages):
            return Rejected(row, "empty", "no message has content")
        return Document(self.domain, self.source, row, messages=tuple(messages))

    def value(self, row: int, value: Any) -> Document | Rejected:
        """A document from an object: its `messages` if it has any, else its text column."""
        if not isinstance(value, dict):
            return Rejected(row, "wrong_type", f"expected an object, found {type(value).__name__}")
        if value.get("messages") is not None:
            return self.messages(row, value["messages"])
        if self.column not in value:
            names = ", ".join(sorted(map(str, value))) or "none"
            return Rejected(row, "wrong_type", _shown(f"no field {self.column!r} and no messages; fields: {names}"))
        text = value[self.column]
        if text is None:
            return Rejected(row, "empty", f"{self.column} is null")
        if not isinstance(text, str | bytes):
            return Rejected(row, "wrong_type", f"{self.column}: expected a string, found {type(text).__name__}")
        return self.text(row, text)

    def json_lines(self, file: BinaryIO) -> Iterator[Document | Rejected]:
        """A document or rejection per line. Lines too long for a document are not read into memory."""
        limit = 8 * self.max_document_bytes + (1 << 16)
        row = 0
        while line := file.readline(limit):
            if len(line) == limit and not line.endswith(b"\n"):
                while (rest := file.readline(limit)) and not rest.endswith(b"\n"):
                    pass
                yield Rejected(row, "oversize", f"the line has more than {limit} bytes")
            else:
                yield self._json_line(row, line)
            row += 1

    def _json_line(self, row: int, line: bytes) -> Document | Rejected:
        try:
            text = line.decode("utf-8-sig" if row == 0 else "utf-8")
        except UnicodeDecodeError as error:
            return Rejected(row, "not_utf8", _not_utf8(error))
        if not text.strip():
            return Rejected(row, "empty", "an empty line")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Rejected(row, "broken_json", _shown(str(error)))
        return self.value(row, value)

    def _oversize(self, size: int) -> str:
        return f"{size} bytes; corpus.max_document_bytes is {self.max_document_bytes}"


def _not_utf8(error: UnicodeError) -> str:
    # not str(error), since that of an encode error quotes characters that cannot be written
    at = error.start if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else "?"
    what = "byte" if isinstance(error, UnicodeDecodeError) else "lone surrogate at character"
    return f"{what} {at}"


def _shown(text: str, limit: int = 300) -> str:
    """The text of a row, shortened, with unencodable characters escaped."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()
