"""Reading sample_features: embeddings are memory-mapped and read when a row is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plumbline.artifact import read_json


@dataclass(frozen=True, eq=False)
class Features:
    """Features of N samples, in the order of the shards."""

    sample_ids: pa.ChunkedArray
    """Arrow strings (N,); a list of Python strings would take three times the memory."""
    lengths: NDArray[np.int64]
    """Tokens per sample, int64 (N,)."""
    domains: pa.ChunkedArray
    """Arrow strings (N,)."""
    embeddings: Embeddings


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N rows of unit length, float16 (N, dimension), in several memory-mapped files."""

    files: tuple[NDArray[np.float16], ...]
    file_of: NDArray[np.int32]
    """Per row, its file, int32 (N,)."""
    row_of: NDArray[np.int64]
    """Per row, its row in that file, int64 (N,)."""
    dimension: int

    def __len__(self) -> int:
        return len(self.file_of)

    def take(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        """Read the embeddings at `rows` (None: all) into memory, float16 (len(rows), dimension)."""
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        out = np.empty((len(wanted), self.dimension), dtype=np.float16)
        file_of = self.file_of[wanted]
        for number in np.unique(file_of):
            here = np.flatnonzero(file_of == number)
            out[here] = self.files[number][self.row_of[wanted[here]]]
        return out

    def at(self, rows: NDArray[np.int64]) -> Embeddings:
        """The embeddings at `rows`, in that order, without reading them."""
        return Embeddings(self.files, self.file_of[rows], self.row_of[rows], self.dimension)

    def blocks(self, size: int = 65536) -> Iterator[NDArray[np.float16]]:
        """All rows in order, at most `size` at a time, for passes over more rows than fit into memory."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of sample_features: embedder, its digest, dimension, samples, fingerprint, shards, signatures."""
    manifest: dict[str, Any] = read_json(path / "manifest.json")
    return manifest


def shard_table(path: Path, shard: str) -> pa.Table:
    """sample_id, split, domain and n_tokens of a shard, row-aligned with its embeddings."""
    return pq.read_table(path / f"{shard}.parquet")


def shard_embeddings(path: Path, shard: str) -> NDArray[np.float16]:
    """A shard's embeddings, memory-mapped, float16 (rows, dimension)."""
    file = path / f"{shard}.npy"
    try:
        embeddings: NDArray[np.float16] = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file}: not a NumPy array ({error}); restore it with `dvc checkout --force`") from error
    return embeddings


def read_features(path: Path, splits: Sequence[str] = ("pool", "tuning", "production")) -> Features:
    """Features of the samples in `splits`; ids, lengths and domains are read, embeddings memory-mapped."""
    manifest = read_manifest(path)
    tables, files, file_of, row_of = [], [], [], []
    for number, shard in enumerate(manifest["shards"]):
        table = shard_table(path, shard)
        rows = np.flatnonzero(pc.is_in(table["split"], pa.array(list(splits), pa.string())).to_numpy())
        tables.append(table.take(pa.array(rows)))
        files.append(shard_embeddings(path, shard))
        file_of.append(np.full(len(rows), number, dtype=np.int32))
        row_of.append(rows.astype(np.int64))
    if not tables:
        raise ValueError(f"{path}: holds no samples; tokenized_samples has none outside the report split")
    table = pa.concat_tables(tables)
    return Features(
        table["sample_id"],
        table["n_tokens"].to_numpy().astype(np.int64),
        table["domain"],
        Embeddings(tuple(files), np.concatenate(file_of), np.concatenate(row_of), manifest["dimension"]),
    )


def embeddings_of(path: Path, sample_ids: pa.ChunkedArray) -> Embeddings:
    """Embeddings of the named samples (Arrow strings) in that order, without reading them.

    Raises:
        ValueError: a sample has no features.
    """
    features = read_features(path)
    rows = pc.index_in(sample_ids, value_set=features.sample_ids)
    if rows.null_count:
        first = sample_ids.filter(rows.is_null())[0].as_py()
        raise ValueError(
            f"{path}: {rows.null_count} samples have no features, the first is {first[:12]}; the features are older "
            f"than tokenized_samples: run sample_features again"
        )
    return features.embeddings.at(rows.to_numpy().astype(np.int64))
