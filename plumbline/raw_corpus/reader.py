"""Reading raw_corpus: shards in the manifest's order, documents without duplicates of earlier shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.shards import shard_path

BATCH_ROWS = 256  # documents in memory at a time


def shards(corpus: Path) -> list[str]:
    """Names of the shards with documents, in the manifest's order."""
    return [s["shard"] for s in read_json(corpus / "manifest.json")["shards"] if s["documents"] + s["duplicates"] > 0]


def duplicates(corpus: Path) -> dict[str, set[int]]:
    """By shard, the rows (of the source file) whose document is in an earlier shard."""
    table = pq.read_table(corpus / "duplicates.parquet", columns=["shard", "row"])
    rows: dict[str, set[int]] = {}
    for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
        rows.setdefault(shard, set()).add(row)
    return rows


def documents(corpus: Path, shard: str, skip: set[int] | None = None) -> Iterator[Document]:
    """Stream the documents of a shard.

    Args:
        skip: rows to leave out, from `duplicates(corpus)` (a caller that reads many shards calls it once); None: look
            them up.

    Raises:
        ValueError: a document's content does not match its id.
    """
    if skip is None:
        skip = duplicates(corpus).get(shard, set())
    path = shard_path(corpus, shard)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                if row["row"] not in skip:
                    yield _document(row, path)


def _document(row: dict[str, object], path: Path) -> Document:
    stored = row.pop("doc_id")
    messages = row.pop("messages")
    chat = None if messages is None else tuple(messages)  # type: ignore[arg-type, var-annotated]
    document = Document(messages=chat, **row)  # type: ignore[arg-type]
    if document.doc_id != stored:
        raise ValueError(
            f"{path} row {document.row}: the content has id {document.doc_id[:12]}, expected {str(stored)[:12]}; "
            f"the file was altered: restore it with `dvc checkout --force`"
        )
    return document
