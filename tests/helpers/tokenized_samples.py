"""Small tokenized_samples artifacts written by their format, without a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.artifact import write_json, write_table
from plumbline.tokenized_samples.batches import SAMPLES

BOS = 1
FINGERPRINT = "f" * 64


def sample(
    number: int, length: int, split: str = "pool", domain: str = "prose", doc: str | None = None
) -> dict[str, Any]:
    """A sample of `length` tokens: BOS, then tokens that no sample of another number has."""
    ids = [BOS] + [1000 * (number + 1) + position for position in range(length - 1)]
    return {
        "sample_id": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest(),
        "doc_id": doc or f"doc-{split}-{number}",
        "split": split,
        "domain": domain,
        "source": f"test/{domain}.txt",
        "window": 0,
        "start": 0,
        "n_tokens": length,
        "n_special": 1,
        "input_ids": ids,
    }


def completed(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A row of `doc_id`, `split`, `domain` and `input_ids` with the columns that the tokenizer adds."""
    ids = np.asarray(row["input_ids"], dtype="<i4")
    name = hashlib.sha256(ids.tobytes()).hexdigest()
    counts = {"window": number, "start": 0, "n_tokens": len(ids), "n_special": 0}
    return {"sample_id": name, "source": "test", **counts, **row, "input_ids": ids.tolist()}


def write_samples(folder: Path, rows: Sequence[dict[str, Any]], shards: int = 1) -> Path:
    """Write a tokenized_samples artifact, rows completed where columns are missing; row i goes to shard i % shards."""
    entries = []
    rows = [completed(row, number) for number, row in enumerate(rows)]
    for number in range(shards):
        part = rows[number::shards]
        write_table(folder / "shards" / f"{number:016x}.parquet", pa.Table.from_pylist(part, SAMPLES))
        entries.append({"shard": f"{number:016x}", "samples": len(part)})
    columns = {"shard": pa.string(), "sample_id": pa.string(), "row": pa.int64()}
    write_table(folder / "duplicates.parquet", pa.table({name: pa.array([], kind) for name, kind in columns.items()}))
    write_json(
        folder / "accounting.json",
        {"fingerprint": FINGERPRINT, "fingerprint_parts": {"max_length": 512}, "shards": entries},
    )
    return folder


def two_domains(production: bool = False) -> list[dict[str, Any]]:
    """Samples of the pool and of tuning in two domains, with a production sample on request."""
    rows = [sample(i, 10 + i % 37, domain="prose" if i % 3 else "code", doc=f"pool-{i // 2}") for i in range(120)]
    rows += [sample(500 + i, 12 + i % 31, split="tuning", domain="prose" if i % 3 else "code") for i in range(50)]
    if production:
        rows += [sample(800 + i, 100 + i, split="production", domain="chat") for i in range(40)]
    return rows
