"""What a source hands to the ingestion: files with a digest, and from each file rows that are documents or rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from plumbline.raw_corpus.document import APART, Document

REASONS = {
    "broken_json": "the line is not JSON",
    "wrong_type": "the row has no text and no chat of the expected type",
    "empty": "nothing but white space",
    "not_utf8": "the bytes are not UTF-8, or the text cannot be written as UTF-8",
    "oversize": "longer than corpus.max_document_bytes",
    "duplicate": "the same content was read before",
    "unreadable": "the file cannot be opened as what its name says",
    "unsupported": "no reader for this kind of file",
    "quarantined": "a good row of a file that is held back for its bad ones",
}


@dataclass(frozen=True)
class Rejected:
    """A row that is no document; `row` is None where the whole file is meant."""

    row: int | None
    reason: str
    detail: str


class UnreadableFile(Exception):
    """The file as a whole cannot be read; the message says what was found."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. Its shard depends on these fields alone, so an unchanged file needs no second reading."""

    name: str
    """Path within the source, with `/`."""
    sha256: str | None
    """Digest of the content; None for a file that is rejected by its name."""
    bytes: int
    options: dict[str, Any]
    """Whatever beside the content decides which documents come out. JSON-able."""
    read: Callable[[], Iterator[Document | Rejected]]
    """Stream the rows in file order; raises UnreadableFile."""
    max_rejected: float | None = None
    """Share of bad rows (duplicates aside) beyond which the whole file is held back; None: it may stop the run."""


def key_of(source: str) -> str:
    """Where a source stands in params.yaml, for messages."""
    return f"corpus.{source}" if source in APART else f"corpus.sources.{source}"
