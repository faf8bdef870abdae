"""Rows to documents: a row becomes a document or is rejected with a reason, by the same rules for every format."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

from plumbline.raw_corpus.chats import Chat, ChatReader, Doubled, UnreadableChat
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.params import ChatFields
from plumbline.raw_corpus.source_file import Rejected


@dataclass(frozen=True)
class RowReader:
    """Turns rows of a source into documents."""

    source: str
    domain: str
    max_document_bytes: int
    column: str = "text"
    read: str | None = None
    chats: ChatFields = field(default_factory=ChatFields)

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

    def chat(self, row: int, chat: Chat) -> Document | Rejected:
        """A document from a chat."""
        more = chat.more()
        try:
            size = sum(len(part.encode()) for message in chat.messages for part in message.values())
            size += len((more or "").encode())
        except UnicodeError as error:
            return Rejected(row, "not_utf8", _not_utf8(error))
        if size > self.max_document_bytes:
            return Rejected(row, "oversize", self._oversize(size))
        calls = any("tool_calls" in fields for fields in chat.fields.values())
        if not calls and not any(message["content"].strip() for message in chat.messages):
            return Rejected(row, "empty", "no message has content")
        return Document(self.domain, self.source, row, messages=tuple(chat.messages), more=more)

    def value(self, row: int, value: Any) -> Document | Rejected:
        """A document from an object: its chat or its text."""
        if not isinstance(value, dict):
            return Rejected(row, "wrong_type", f"expected an object, found {type(value).__name__}")
        try:
            return self._value(row, value)
        except UnreadableChat as error:
            return Rejected(row, error.reason, _shown(str(error)))
        except UnicodeError as error:
            return Rejected(row, "not_utf8", _not_utf8(error))

    def columns(self, there: Collection[str]) -> list[str]:
        """The fields that are read, of those that are there."""
        return [name for name in dict.fromkeys([self.column, *self._chats.columns()]) if name in there]

    def options(self) -> dict[str, Any]:
        """What decides which part of a row is read, JSON-able."""
        return {"column": self.column, "read": self.read, "chat": self.chats.model_dump(exclude_defaults=True)}

    @cached_property
    def _chats(self) -> ChatReader:
        return ChatReader(self.chats)

    def _value(self, row: int, value: dict[Any, Any]) -> Document | Rejected:
        text, name = value.get(self.column), self._chats.found(value)
        if isinstance(text, Doubled):
            return Rejected(
                row, "ambiguous", f"{self.column!r} is there {len(text.values)} times, with different texts"
            )
        has_text = name != self.column and not (text is None or (isinstance(text, str | bytes) and not text.strip()))
        if name is not None and has_text and self.read is None and value[name] != []:
            return Rejected(
                row,
                "ambiguous",
                f"{self.column} and {name} are both there; leave one out, or say which is meant by `read: text` or "
                "`read: chat` under the source in params.yaml",
            )
        if name is not None and (not has_text or (self.read == "chat" and value[name] != [])):
            if isinstance(value[name], bytes):
                return Rejected(row, "not_utf8", f"{name}: a role or a content is not UTF-8")
            return self.chat(row, self._chats.listed(value, name))
        if not has_text and (pair := self._chats.pair(value)) is not None:
            return self.chat(row, pair)
        if self.column not in value:
            names = ", ".join(sorted(map(str, value))) or "none"
            return Rejected(row, "wrong_type", _shown(f"no field {self.column!r} and no chat; fields: {names}"))
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
            value = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            return Rejected(row, "broken_json", _shown(str(error)))
        return self.value(row, value)

    def _oversize(self, size: int) -> str:
        return f"{size} bytes; corpus.max_document_bytes is {self.max_document_bytes}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the value of a key that it has twice with different values is `Doubled`."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name in fields:
            values = [value for key, value in pairs if key == name]
            if any(value != values[0] for value in values):
                fields[name] = Doubled(values)
    return fields


def _not_utf8(error: UnicodeError) -> str:
    # not str(error), since that of an encode error quotes characters that cannot be written
    at = error.start if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else "?"
    what = "byte" if isinstance(error, UnicodeDecodeError) else "lone surrogate at character"
    return f"{what} {at}"


def _shown(text: str, limit: int = 300) -> str:
    """The text of a row, shortened, with unencodable characters escaped."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()
