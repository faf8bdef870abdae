"""Reading tokenized_samples: shards in the accounting's order, without duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.tokenized_samples.batches import SAMPLES
from plumbline.tokenized_samples.splits import SPLITS
from plumbline.tokenized_samples.tokenize import shard_path

BATCH_ROWS = 4096


def fingerprint_of(samples: Path) -> str:
    """The fingerprint of the tokenization (see fingerprint.py)."""
    return str(read_json(samples / "accounting.json")["fingerprint"])


def shards(samples: Path) -> list[str]:
    """Names of the shards with samples, in order."""
    return [e["shard"] for e in read_json(samples / "accounting.json")["shards"] if e["samples"]]


def iter_samples(
    samples: Path,
    splits: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    only_shards: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream the samples, at most BATCH_ROWS rows at a time.

    Args:
        splits: which of pool, tuning, report, production, out_of_domain; None: all.
        columns: which columns, in that order; None: all (batches.SAMPLES).
        only_shards: read only these; duplicates of other shards are left out, too.

    Raises:
        ValueError: there is no such split or column.
    """
    names = list(columns or SAMPLES.names)
    if unknown := [c for c in names if c not in SAMPLES.names] + [s for s in splits or () if s not in SPLITS]:
        raise ValueError(f"{unknown}: the columns are {SAMPLES.names}, the splits {SPLITS}")
    table = pq.read_table(samples / "duplicates.parquet", columns=["shard", "row"])
    shard_of, row_of = table["shard"].to_numpy(), table["row"].to_numpy()
    for shard in shards(samples):
        if only_shards is not None and shard not in only_shards:
            continue
        skip = row_of[shard_of == shard]
        row = 0
        with pq.ParquetFile(shard_path(samples, shard)) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[*dict.fromkeys([*names, "split"])]):
                keep = ~np.isin(np.arange(row, row + batch.num_rows), skip)
                row += batch.num_rows
                if splits is not None:
                    keep &= np.isin(batch.column("split").to_numpy(zero_copy_only=False).astype(str), list(splits))
                if keep.any():
                    batch = batch.select(names)
                    yield batch if keep.all() else batch.filter(pa.array(keep))


def read_samples(
    samples: Path,
    splits: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    only_shards: Sequence[str] | None = None,
) -> pa.Table:
    """The samples as one table; arguments as for `iter_samples`. It is all in memory, so name the columns you need."""
    schema = pa.schema([SAMPLES.field(name) for name in columns or SAMPLES.names])
    return pa.Table.from_batches(iter_samples(samples, splits, columns, only_shards), schema)
