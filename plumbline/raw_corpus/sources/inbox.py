"""The files taken in from the inbox, read from their copies in the store."""

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
from plumbline.raw_corpus.stores import InboxStore

INBOX = "inbox"


def source_files(intake: Intake, store: InboxStore, params: CorpusParams) -> Iterator[SourceFile]:
    """A file per entry of the intake, in order of name; files are opened when they are read.

    A file with a share of rejected rows above `corpus.max_rejected` is quarantined (`SourceFile.max_rejected`).
    """
    for name, taken in intake.files.items():
        if taken.sha256 is None:
            problem = taken.refused or ""
            yield SourceFile(name, None, taken.bytes, {"rejected": problem}, rejected("unsupported", problem), 0.0)
        else:
            yield _file(name, taken, store, params)


def _file(name: str, taken: Taken, store: InboxStore, params: CorpusParams) -> SourceFile:
    domain = domain_of(name, INBOX)
    reader = RowReader(f"{INBOX}/{name}", domain, params.max_document_bytes)
    options = {
        "domain": domain,
        **reader.options(),
        "max_document_bytes": params.max_document_bytes,
        "max_rejected": params.max_rejected,
        "max_file_bytes": params.max_file_bytes,
    }

    def read() -> Iterator[Document | Rejected]:
        path = store.find(name, cast(str, taken.sha256))
        if path is None:
            raise RuntimeError(
                f"{INBOX}/{name} was taken in, but neither its copy nor the file is there any more; put the file "
                "back, or run `plumbline run`, which takes in the current files"
            )
        yield from reading(path, cast(str, suffix_of(name)), reader, stamp(path), params.max_file_bytes)()

    return SourceFile(name, taken.sha256, taken.bytes, options, read, params.max_rejected)
