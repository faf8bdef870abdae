"""A look at the first row of source files, before any is read as a whole."""

from __future__ import annotations

import gzip
import itertools
import json
from contextlib import suppress
from pathlib import Path

from plumbline.raw_corpus.params import CorpusParams, Directory
from plumbline.raw_corpus.sources.names import file_names

CHAT_COLUMNS = ("messages", "conversations")
FILES = 20
"""Files per folder that are looked at."""


def first_chat(params: CorpusParams, root: Path) -> Path | None:
    """A file below a folder of the corpus whose first row is a chat; None: none of those looked at is."""
    sources = [source.path for source in params.in_order().values() if isinstance(source, Directory)]
    folders = [root / path for path in (*sources, params.inbox) if (root / path).is_dir()]
    for folder in folders:
        names = (name for name in file_names(folder) if name.lower().endswith((".jsonl", ".jsonl.gz", ".parquet")))
        for name in itertools.islice(names, FILES):
            with suppress(Exception):  # an unreadable file is the reader's to report
                if set(CHAT_COLUMNS) & _columns(folder / name):
                    return folder / name
    return None


def _columns(path: Path) -> set[str]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return set(pq.read_schema(path).names)
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        row = json.loads(file.readline(10_000_000))
    return set(row) if isinstance(row, dict) else set()
