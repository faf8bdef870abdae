"""A dataset of the Hugging Face hub, or of a local folder that `datasets` opens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from plumbline.artifact import sha256_json
from plumbline.raw_corpus.chats import without_nulls
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.params import HuggingFace
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected, SourceFile, key_of


def source_files(
    name: str, source: HuggingFace, root: Path, max_document_bytes: int, hashes: FileHashes
) -> Iterator[SourceFile]:
    """The dataset as one file, named `config/split`.

    The digest of a hub dataset is over its name and commit, so an unchanged one is not downloaded again; that of a
    local folder (relative to `root`) is over its files. `bytes` is 0 for a hub dataset, whose size is not known.

    Raises:
        ValueError: the revision of a hub dataset is not a commit.
    """
    folder = root / source.name
    identity: list[object] = [source.name, source.config, source.split, source.revision]
    size = 0
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)
        identity = [source.config, source.split, [[p.relative_to(folder).as_posix(), hashes.sha256(p)] for p in files]]
        size = sum(p.stat().st_size for p in files)
    elif not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        raise ValueError(
            f"params.yaml {key_of(name)}.revision: expected the 40 hex digits of a commit of {source.name}, "
            f"found {source.revision!r}; a branch would let the corpus change under the same parameters. The commit "
            f"is on the dataset's page on the hub, under 'Files and versions', 'History'"
        )
    virtual = "/".join(filter(None, (source.config, source.split)))
    domain = source.domain or name
    reader = RowReader(f"{name}/{virtual}", domain, max_document_bytes, source.column, source.read, source.chat)
    options = {
        "domain": domain,
        **reader.options(),
        "limit": source.limit,
        "max_document_bytes": max_document_bytes,
    }

    def read() -> Iterator[Document | Rejected]:
        from datasets import load_dataset  # takes seconds to import

        rows = load_dataset(
            str(folder) if folder.is_dir() else source.name,
            source.config,
            split=source.split,
            revision=None if folder.is_dir() else source.revision,
            streaming=source.streaming,
        )
        columns = reader.columns(rows.column_names or ())
        if columns:  # do not decode images and other unused columns
            rows = rows.select_columns(columns)
        for row, value in enumerate(itertools.islice(rows, source.limit)):
            yield reader.value(row, without_nulls(value))

    yield SourceFile(virtual, sha256_json(identity), size, options, read)
