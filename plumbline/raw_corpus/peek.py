"""A look at the first rows of source files, before any is read as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.params import CorpusParams, Directory
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.sources.directory import read_file
from plumbline.raw_corpus.sources.names import file_names

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
FILES, ROWS = 20, 20
"""Files per folder, and rows per file, that are looked at."""


def first_chat(params: CorpusParams, root: Path) -> Path | None:
    """A file below a folder of the corpus whose first document is a chat; None: none of those looked at is.

    What a chat is decides the reader that will read the file, with the fields that params.yaml names.
    """
    for folder, reader in _folders(params, root):
        names = (name for name in file_names(folder) if name.lower().endswith(SUFFIXES))
        for name in itertools.islice(names, FILES):
            with suppress(Exception):  # an unreadable file is the reader's to report
                suffix = next(suffix for suffix in SUFFIXES[::-1] if name.lower().endswith(suffix))
                rows = itertools.islice(read_file(folder / name, suffix, reader), ROWS)
                first = next((row for row in rows if isinstance(row, Document)), None)
                if first is not None and first.messages is not None:
                    return folder / name
    return None


def _folders(params: CorpusParams, root: Path) -> Iterator[tuple[Path, RowReader]]:
    limit = params.max_document_bytes
    for name, source in params.in_order().items():
        if isinstance(source, Directory) and (root / source.path).is_dir():
            yield root / source.path, RowReader(name, "", limit, source.column, source.read, source.chat)
    if (root / params.inbox).is_dir():
        yield root / params.inbox, RowReader("inbox", "", limit)
