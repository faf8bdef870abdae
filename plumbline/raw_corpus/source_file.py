"""The interface of a source: files with a digest, whose rows are documents or rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plumbline.raw_corpus.document import APART, Document

REASONS = {
    "broken_json": "the line is not JSON",
    "wrong_type": "the row has no text and no chat of the expected type",
    "ambiguous": "the row has two texts, and it is not known which is meant",
    "empty": "nothing but white space",
    "not_utf8": "the bytes are not UTF-8, or the text cannot be written as UTF-8",
    "oversize": "longer than corpus.max_document_bytes",
    "duplicate": "the same content was read before",
    "unreadable": "the file cannot be opened as what its name says",
    "unsupported": "no reader for this kind of file",
    "quarantined": "a good row of a file that is held back for its bad ones",
}
NO_FAULT = ("duplicate", "empty")
"""Reasons that are counted but not held against `corpus.max_rejected`: public sets have blank and repeated rows."""


@dataclass(frozen=True)
class Rejected:
    """A row that is not a document; `row` is None for a whole file."""

    row: int | None
    reason: str
    detail: str


class UnreadableFile(Exception):
    """The whole file cannot be read; the message gives the reason."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. Its shard depends on these fields alone, so an unchanged file is not read again."""

    name: str
    """Path within the source, with `/`."""
    sha256: str | None
    """Digest of the content; None for a file that is rejected by its name."""
    bytes: int
    options: dict[str, Any]
    """Everything that decides the documents, except the content. JSON-able."""
    read: Callable[[], Iterator[Document | Rejected]]
    """Stream the rows in file order; raises UnreadableFile."""
    max_rejected: float | None = None
    """Largest share of bad rows (see `bad_rows`) before the file is quarantined; None: the run may fail."""


def bad_rows(rejected: Mapping[str, int]) -> int:
    """The number of rejected rows that count against `corpus.max_rejected`, from the counts by reason."""
    return sum(rows for reason, rows in rejected.items() if reason not in NO_FAULT)


def key_of(source: str) -> str:
    """The key of a source in params.yaml, for messages."""
    return f"corpus.{source}" if source in APART else f"corpus.sources.{source}"
