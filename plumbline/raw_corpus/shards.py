"""A shard of the corpus: the documents of one source file as Parquet, and the rejected rows in another file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import sha256_json
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.source_file import Rejected, SourceFile, UnreadableFile, bad_rows

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("messages", MESSAGES),
        ("more", pa.string()),  # of a chat: see Document.more
        ("domain", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("group", pa.string()),
    ]
)
REJECTED = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
ROW_GROUP_ROWS = 4096
ROW_GROUP_BYTES = 16 << 20
"""A row group is written when it reaches either, so that memory does not depend on the file's size."""


class TableWriter:
    """Writes a Parquet file in row groups; its bytes depend on the rows alone. Without rows, there is no file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        self._pending: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, row: Mapping[str, Any], size: int) -> None:
        """Add a row of about `size` bytes."""
        self._pending.append(row)
        self.rows += 1
        self._bytes += size
        if len(self._pending) >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def discard(self) -> None:
        """Delete all rows, written or not."""
        self._pending.clear()
        self.close()
        self._writer, self.rows = None, 0
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self.path, self.schema, compression="zstd", write_statistics=False)
        self._writer.write_table(pa.Table.from_pylist(self._pending, self.schema))
        self._pending.clear()
        self._bytes = 0


def shard_name(source: str, file: SourceFile) -> str:
    """16 hex digits that change with everything that decides the shard's content."""
    return sha256_json([source, file.name, file.sha256, file.options])[:16]


def write_shard(source: str, file: SourceFile, shard: str, out: Path) -> dict[str, Any]:
    """Read a source file into `out/shards` and `out/rejected`.

    Returns:
        Its row of the manifest, without the duplicates of other files: `rows` = `documents` + the sum of `rejected`.
    """
    documents = TableWriter(shard_path(out, shard), DOCUMENTS)
    rejected = TableWriter(rejected_path(out, shard), REJECTED)
    counts: Counter[str] = Counter()
    seen: dict[bytes, int] = {}  # about 150 bytes per document, little beside its text

    def reject(rejected_row: Rejected) -> None:
        counts[rejected_row.reason] += 1
        row = {
            "file": f"{source}/{file.name}",
            "row": rejected_row.row,
            "reason": rejected_row.reason,
            "detail": rejected_row.detail,
        }
        rejected.append(row, len(rejected_row.detail))

    try:
        for result in file.read():
            if isinstance(result, Rejected):
                reject(result)
            elif (first := seen.setdefault(bytes.fromhex(result.doc_id), result.row)) != result.row:
                reject(Rejected(result.row, "duplicate", f"same content as row {first}"))
            else:
                documents.append(*_as_row(result))
    except UnreadableFile as error:
        # nothing of the file is used, since the rest of its content is unknown
        documents.discard()
        rejected.discard()
        counts.clear()
        reject(Rejected(None, "unreadable", str(error)))
    except BaseException:
        documents.discard()
        rejected.discard()
        raise
    bad = bad_rows(counts)
    rows = documents.rows + counts.total()
    quarantined = bool(counts["unreadable"]) or (file.max_rejected is not None and bad > file.max_rejected * rows)
    if quarantined and documents.rows:
        held_back = documents.rows
        documents.discard()
        reject(Rejected(None, "quarantined", f"{held_back} good rows: {bad} of {rows} are bad"))
        counts["quarantined"] = held_back
    documents.close()
    rejected.close()
    counts += Counter()  # removes counts of 0
    return {
        **({"quarantined": True} if quarantined else {}),
        "shard": shard,
        "source": source,
        "file": file.name,
        "sha256": file.sha256,
        "bytes": file.bytes,
        "rows": documents.rows + counts.total(),
        "documents": documents.rows,
        "rejected": dict(sorted(counts.items())),
    }


def _as_row(document: Document) -> tuple[dict[str, Any], int]:
    size = len(document.text or "") + sum(len(m["content"]) for m in document.messages or ()) + len(document.more or "")
    return {name: getattr(document, name) for name in DOCUMENTS.names}, size


def shard_path(corpus: Path, shard: str) -> Path:
    """Path of the documents of a shard; absent if it has none."""
    return corpus / "shards" / f"{shard}.parquet"


def rejected_path(corpus: Path, shard: str) -> Path:
    """Path of the rejected rows of a shard; absent if it has none."""
    return corpus / "rejected" / f"{shard}.parquet"
