"""The files that were taken in from the inbox, read from the copies that are held of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.file_hashes import stamp
from plumbline.raw_corpus.intake import Intake, Taken
from plumbline.raw_corpus.params import CorpusParams
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected, SourceFile
from plumbline.raw_corpus.sources.directory import domain_of, reading, rejected
from plumbline.raw_corpus.sources.names import suffix_of
from plumbline.raw_corpus.stores import Store

INBOX = "inbox"


def source_files(intake: Intake, store: Store, params: CorpusParams) -> Iterator[SourceFile]:
    """A file per entry of the intake, in order of name. None is opened before it is read.

    A file more than `corpus.max_rejected` of whose rows are bad is held back as a whole (`SourceFile.max_rejected`).
    """
    for name, taken in intake.files.items():
        if taken.sha256 is None:
            problem = taken.refused or ""
            yield SourceFile(name, None, taken.bytes, {"rejected": problem}, rejected("unsupported", problem), 0.0)
        else:
            yield _file(name, taken, store, params)


def _file(name: str, taken: Taken, store: Store, params: CorpusParams) -> SourceFile:
    domain = domain_of(name, INBOX)
    options = {
        "domain": domain,
        "column": "text",
        "max_document_bytes": params.max_document_bytes,
        "max_rejected": params.max_rejected,
        "max_file_bytes": params.max_file_bytes,
    }

    def read() -> Iterator[Document | Rejected]:
        path = store.find(name, cast(str, taken.sha256))
        if path is None:
            raise RuntimeError(
                f"{INBOX}/{name} was taken in and is gone from the inbox, also under another name; put the file back, "
                "or run `plumbline run`, which takes in what is there now"
            )
        reader = RowReader(f"{INBOX}/{name}", domain, params.max_document_bytes)
        yield from reading(path, cast(str, suffix_of(name)), reader, stamp(path), params.max_file_bytes)()

    return SourceFile(name, taken.sha256, taken.bytes, options, read, params.max_rejected)
