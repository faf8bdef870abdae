"""A dataset of the Hugging Face hub, or of a local folder that `datasets` opens or has saved."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_json
from plumbline.raw_corpus.chats import without_nulls
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.params import HuggingFace
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected, SourceFile, UnreadableFile, key_of

SAVED = ("state.json", "dataset_dict.json")
"""Files of a folder that `save_to_disk` of `datasets` wrote: of one split, and of several."""


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

    local = folder if folder.is_dir() else None

    def read() -> Iterator[Document | Rejected]:
        rows = _opened(name, source, local)
        columns = reader.columns(rows.column_names or ())
        if columns:  # do not decode images and other unused columns
            rows = rows.select_columns(columns)
        for row, value in enumerate(_values(name, source, local, rows)):
            yield reader.value(row, {field: without_nulls(content) for field, content in value.items()})

    yield SourceFile(virtual, sha256_json(identity), size, options, read)


def _opened(name: str, source: HuggingFace, local: Path | None) -> Any:
    """The rows of the split, as `datasets` opens them.

    Raises:
        ValueError: it cannot; the message names the source and its key in params.yaml.
    """
    from datasets import load_dataset, load_from_disk  # takes seconds to import

    saved: Any = None
    try:
        if local is not None and any((local / file).is_file() for file in SAVED):
            saved = load_from_disk(str(local))
            return saved[source.split] if isinstance(saved, dict) else saved
        return load_dataset(
            str(local) if local else source.name,
            source.config,
            split=source.split,
            revision=None if local else source.revision,
            streaming=source.streaming,
        )
    except MemoryError:
        raise
    except Exception as error:  # `datasets` raises anything: of the hub, of fsspec, of its builders
        splits = f"; its splits: {', '.join(saved)}" if isinstance(saved, dict) else ""
        raise ValueError(
            f"params.yaml {key_of(name)}: `datasets` cannot open {_described(source, local)}: "
            f"{_said(error)}{splits}. Correct name, config and split; the dataset's page on the hub lists them"
        ) from error


def _values(name: str, source: HuggingFace, local: Path | None, rows: Any) -> Iterator[Any]:
    """Stream the rows, as far as `limit`.

    Raises:
        UnreadableFile: a file of a local folder is broken.
        ValueError: the hub does not answer, or a file there is broken: which of both cannot be told.
    """
    row = 0
    values = iter(itertools.islice(rows, source.limit))
    while True:
        try:
            value = next(values, None)
        except MemoryError:
            raise
        except Exception as error:
            if local is not None:
                raise UnreadableFile(f"after row {row}: {_said(error).replace(str(local), local.name)}") from error
            raise ValueError(
                f"params.yaml {key_of(name)}: {_described(source, local)} cannot be read after row {row}: "
                f"{_said(error)}. Run again if the network failed; else leave the bad part out with `limit`, or remove "
                "the source"
            ) from error
        if value is None:
            return
        yield value
        row += 1


def _described(source: HuggingFace, local: Path | None) -> str:
    revision = "" if local else f", revision {source.revision[:12]}"
    return f"{source.name!r} (config {source.config or 'default'}, split {source.split}{revision})"


def _said(error: Exception) -> str:
    """An error and what it was raised from, which often says more."""
    text = f"{type(error).__name__}: {error}"
    if error.__cause__ is not None:
        text += f" ({type(error.__cause__).__name__}: {error.__cause__})"
    return " ".join(text.split())[:400]
