"""sample_features: length and embedding of every pool, tuning and production sample, computed once per sample id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from plumbline.artifact import link_or_copy, read_json, write_table
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import shares_out
from plumbline.progress import Bar
from plumbline.sample_features.array_file import new_array_file
from plumbline.sample_features.blocks import embedded
from plumbline.sample_features.embedder import embedder_digest
from plumbline.sample_features.engine import Engine
from plumbline.sample_features.params import FeatureParams
from plumbline.sample_features.reader import Features, read_features, read_manifest, shard_table
from plumbline.tokenized_samples.reader import iter_samples, read_samples, shards

log = logging.getLogger(__name__)

SPLITS = ("pool", "tuning", "production")
"""The report split is not read before evaluation."""
COLUMNS = ("sample_id", "split", "domain", "n_tokens")
BUFFER = 2048
"""Samples decoded and embedded together: enough for batches of equal length, few enough for memory."""


def settings_of(params: FeatureParams, folder: Path, fingerprint: str) -> dict[str, Any]:
    """What decides an embedding, as manifest.json records it.

    Args:
        folder: the embedder's.
        fingerprint: of the tokenization.
    """
    configured = Path(params.embedder)
    return {
        "embedder": configured.name if configured.is_absolute() else params.embedder,
        "embedder_digest": embedder_digest(folder),
        "max_tokens": params.max_tokens,
        "matmul_precision": params.matmul_precision,
        "fingerprint": fingerprint,
    }


def write_embeddings(
    settings: dict[str, Any],
    engine: Engine,
    samples: Path,
    out: Path,
    previous: Path | None,
    execution: ExecutionParams | None = None,
) -> dict[str, Any]:
    """Write length and embedding of every pool, tuning and production sample, shard by shard.

    Args:
        settings: as `settings_of` gives them.
        engine: embeds what `previous` does not have.
        execution: who embeds; None: this process.

    Returns:
        The embeddings' part of manifest.json: dimension, samples, and the shards' names.

    Raises:
        ValueError: the tokenizer is not the one the samples were made with, or there is no sample.
    """
    known = _Known(previous, settings)
    names: list[str] = []
    computed = 0
    by_split = read_json(samples / "accounting.json")["by_split"]
    total = sum(counts["samples"] for split, counts in by_split.items() if split in SPLITS)
    if not total:
        raise ValueError("no sample outside the report split: add documents, or lower tokenize.splits in params.yaml")
    with Bar(total=total, desc="sample_features", unit=" samples") as progress:
        todo = _prepare(samples, out, known, engine, names, progress)
        if execution is not None and shares_out(execution) and total > BUFFER:
            for places, embeddings in embedded(engine, _blocks(todo), out, execution, progress.update):
                _store(out, places, embeddings)
                computed += len(places)
        for jobs in _blocks(todo):
            for positions, embeddings in engine.embed([ids for _, _, ids in jobs]):
                _store(out, [jobs[position][:2] for position in positions], embeddings)
                computed += len(positions)
                progress.update(len(positions))
    log.info("computed %d of %d embeddings", computed, total)
    dimension = engine.dimension if computed else known.dimension
    return {"dimension": dimension, "samples": total, "shards": names}


def _blocks(todo: Iterator[tuple[str, int, NDArray[np.int32]]]) -> Iterator[list[tuple[str, int, NDArray[np.int32]]]]:
    while block := list(islice(todo, BUFFER)):
        yield block


def _prepare(
    samples: Path, out: Path, earlier: _Known, engine: Engine, names: list[str], progress: Any
) -> Iterator[tuple[str, int, NDArray[np.int32]]]:
    """Write each shard's files with the earlier embeddings; yield shard, row and token ids of the other samples."""
    for shard in shards(samples):
        table = read_samples(samples, SPLITS, COLUMNS, only_shards=[shard])
        if not table.num_rows:
            continue
        names.append(shard)
        write_table(out / f"{shard}.parquet", table)
        if earlier.link(shard, table, out):
            progress.update(table.num_rows)
            continue
        rows, embeddings = earlier.embeddings_of(table["sample_id"])
        shape = (table.num_rows, earlier.dimension if len(rows) else engine.dimension)
        file = new_array_file(out / f"{shard}.npy", np.float16, shape)
        file[rows] = embeddings
        del file  # closes it, as a corpus may have more shards than a process may open files
        progress.update(len(rows))
        missing = np.ones(table.num_rows, dtype=bool)
        missing[rows] = False
        row = 0
        for batch in iter_samples(samples, SPLITS, ["input_ids"], only_shards=[shard] if missing.any() else []):
            for ids in batch.column(0):
                if missing[row]:
                    yield shard, row, ids.values.to_numpy()
                row += 1


def _store(out: Path, places: list[tuple[str, int]], embeddings: NDArray[np.float16]) -> None:
    by_shard: dict[str, list[int]] = {}
    for position, (shard, _) in enumerate(places):
        by_shard.setdefault(shard, []).append(position)
    for shard, positions in by_shard.items():
        file = np.lib.format.open_memmap(out / f"{shard}.npy", mode="r+")
        file[[places[position][1] for position in positions]] = embeddings[positions]
        del file


class _Known:
    """The embeddings of an earlier version, if it has the same settings."""

    def __init__(self, previous: Path | None, settings: dict[str, Any]) -> None:
        self.path: Path | None = None
        if previous is not None and (previous / "manifest.json").is_file():
            manifest = read_manifest(previous)
            if all(manifest.get(name) == value for name, value in settings.items()):
                self.path, self.shards, self.dimension = previous, set(manifest["shards"]), manifest["dimension"]

    @cached_property
    def features(self) -> Features:
        assert self.path is not None
        return read_features(self.path)

    def link(self, shard: str, table: pa.Table, out: Path) -> bool:
        """Link a shard's embeddings if it has the same samples in the same order."""
        if self.path is None or shard not in self.shards:
            return False
        if not shard_table(self.path, shard)["sample_id"].equals(table["sample_id"]):
            return False
        link_or_copy(self.path / f"{shard}.npy", out / f"{shard}.npy")
        return True

    def embeddings_of(self, sample_ids: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """The rows of `sample_ids` with an earlier embedding, int64 (k,), and these, float16 (k, dimension)."""
        if self.path is None:
            return np.empty(0, np.int64), np.empty((0, 1), np.float16)
        places = pc.index_in(sample_ids, value_set=self.features.sample_ids)
        rows = np.flatnonzero(places.is_valid().to_numpy())
        return rows, self.features.embeddings.take(places.drop_null().to_numpy())
