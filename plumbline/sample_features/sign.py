"""Building the signatures in sample_features, each once per sample id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from plumbline.artifact import link_or_copy, sha256_file, write_table
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.progress import Bar
from plumbline.sample_features.array_file import new_array_file
from plumbline.sample_features.params import SignatureParams
from plumbline.sample_features.probe import Probe, load_probe, make_probe, save_probe
from plumbline.sample_features.reader import read_manifest
from plumbline.sample_features.signature_reader import FOLDER, Stored, folded, narrowed
from plumbline.tokenized_samples.reader import iter_samples, shards

if TYPE_CHECKING:
    from plumbline.sample_features.measure import Counter, Signature

log = logging.getLogger(__name__)

ARRAYS = ("pooled", "cells", "absmax", "sketch")
VERSION = 1
"""Version of the signature's definition; signatures of another version are not reused."""


def write_signatures(
    params: SignatureParams,
    splits: Sequence[str],
    base: BaseCheckpoint,
    samples: Path,
    fingerprint: str,
    out: Path,
    previous: Path | None,
) -> dict[str, Any]:
    """Write the signatures of the samples with the lowest ids of each split, and the magnitudes of all but the pool.

    Args:
        splits: "pool" and the reference splits.
        previous: an earlier sample_features: what it holds is taken over where base model, tokenization and settings
            are the same. Where nothing is missing, no model is loaded.

    Returns:
        The manifest's entry.
    """
    settings = {name: getattr(params, name) for name in ("sites", "cells", "sketch", "pooled")}
    made_for = {
        "version": VERSION,
        "settings": settings,
        "base_model_digest": base.digest(),
        "fingerprint": fingerprint,
    }
    earlier = _Earlier(previous, made_for)
    chosen = {split: _lowest(samples, split, params.pool if split == "pool" else params.reference) for split in splits}
    plans = {split: _Plan(split, names, earlier) for split, names in chosen.items() if names}
    wanted = sorted({name for plan in plans.values() for name in plan.to_forward})
    (out / FOLDER).mkdir()
    probe_file = _write_probe(base, params, earlier, out / FOLDER)
    probe = load_probe(probe_file)
    writers = {split: _Writer(plan, probe, earlier, out / FOLDER) for split, plan in plans.items()}
    if wanted:
        _measure(base.loaded(), wanted, samples, probe, writers)
    missing = sum(len(plan.missing) for plan in plans.values())
    total = sum(len(plan.names) for plan in plans.values())
    log.info("computed %d of %d signatures, in %d forward passes", missing, total, len(wanted))
    return {
        **made_for,
        "probe": sha256_file(probe_file),
        "activations": probe.dtype,
        "sites": [asdict(site) for site in probe.sites],
        "splits": {split: writer.close() for split, writer in writers.items()},
    }


def _write_probe(base: BaseCheckpoint, params: SignatureParams, earlier: _Earlier, folder: Path) -> Path:
    """The probe's file, taken over from the earlier version or made anew."""
    path = folder / "probe.safetensors"
    if earlier.probe_file is None:
        save_probe(make_probe(base.loaded(), params), path)
    else:
        link_or_copy(earlier.probe_file, path)
    return path


def _lowest(samples: Path, split: str, most: int) -> list[str]:
    """The lowest sample ids of a split, ascending: a uniform draw, as ids are hashes, that grows with the split."""
    lowest: list[str] = []
    for batch in iter_samples(samples, [split], ["sample_id"]):
        lowest = sorted(lowest + batch.column(0).to_pylist())[:most]
    return lowest


class _Earlier:
    """The signatures of an earlier version, if it has the same model, tokenization and settings."""

    def __init__(self, previous: Path | None, made_for: dict[str, Any]) -> None:
        self.stored: Stored | None = None
        self.probe_file: Path | None = None
        if previous is not None and (previous / "manifest.json").is_file():
            about = read_manifest(previous).get("signatures")
            if about is not None and all(about.get(name) == value for name, value in made_for.items()):
                self.stored = Stored(previous)
                self.probe_file = previous / FOLDER / "probe.safetensors"

    def rows_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        return np.full(len(names), -1, np.int64) if self.stored is None else self.stored.rows_of(names)

    def ids(self, split: str) -> list[str] | None:
        """The samples of a split; None: the earlier version does not have the split."""
        if self.stored is None or split not in self.stored.tables:
            return None
        names: list[str] = self.stored.tables[split]["sample_id"].to_pylist()
        return names

    def file(self, split: str, name: str) -> Path:
        assert self.stored is not None
        return self.stored.features / FOLDER / f"{split}.{name}.npy"

    def counts(self, split: str) -> tuple[NDArray[np.int32], int]:
        """(W, b) counts, and the number of their first bucket."""
        assert self.stored is not None
        return self.stored.file(split, "magnitudes"), self.stored.about["splits"][split]["first_bucket"]


class _Plan:
    """The samples of a split that must be forwarded, and those that the earlier version has."""

    def __init__(self, split: str, names: list[str], earlier: _Earlier) -> None:
        self.split, self.names = split, names
        self.rows = earlier.rows_of(names)
        self.missing = [name for name, row in zip(names, self.rows, strict=True) if row < 0]
        earlier_ids = earlier.ids(split)
        self.unchanged = earlier_ids == names
        self.counts_known = split != "pool" and earlier_ids is not None and set(earlier_ids) <= set(names)
        if split == "pool":
            self.to_count: set[str] = set()
        else:
            self.to_count = set(names) - set(earlier_ids or ()) if self.counts_known else set(names)
        self.to_forward = {*self.missing, *self.to_count}


class _Writer:
    """Writes the files of a split: earlier signatures first, then the others sample by sample."""

    def __init__(self, plan: _Plan, probe: Probe, earlier: _Earlier, out: Path) -> None:
        self.plan, self.probe, self.earlier, self.out = plan, probe, earlier, out
        self.row = {name: row for row, name in enumerate(plan.names)}
        self.tokens = np.zeros(len(plan.names), np.int64)
        self.counter: Counter | None = None
        if plan.unchanged:
            assert earlier.stored is not None
            self.tokens = earlier.stored.tables[plan.split]["n_tokens"].to_numpy()
            for name in ARRAYS:
                link_or_copy(earlier.file(plan.split, name), out / f"{plan.split}.{name}.npy")
            return
        stored_rows = np.flatnonzero(plan.rows >= 0)
        for name, (shape, dtype) in self._layout.items():
            path = out / f"{plan.split}.{name}.npy"
            file = new_array_file(path, dtype, (len(plan.names), *shape))
            if earlier.stored is not None and len(stored_rows):
                file[stored_rows] = earlier.stored.raw(name, plan.rows[stored_rows])
            file.flush()
        if earlier.stored is not None and len(stored_rows):
            self.tokens[stored_rows] = earlier.stored.table["n_tokens"].to_numpy()[plan.rows[stored_rows]]

    @cached_property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        (sites, cells, _), r, p = (
            self.probe.centroids.shape,
            self.probe.directions.shape[1],
            self.probe.pooling.shape[1],
        )
        absmax = narrowed(np.zeros(0, np.float32), self.probe.dtype).dtype
        return {
            "pooled": ((p,), np.dtype("<f4")),
            "cells": ((sites, cells), np.dtype("<i4")),
            "absmax": ((self.probe.width,), absmax),
            "sketch": ((sites, r * (r + 1) // 2), np.dtype("<f4")),
        }

    @cached_property
    def _files(self) -> dict[str, NDArray[Any]]:
        return {
            name: np.lib.format.open_memmap(self.out / f"{self.plan.split}.{name}.npy", mode="r+") for name in ARRAYS
        }

    def add(self, signature: Signature) -> None:
        row = self.row[signature.sample_id]
        self.tokens[row] = signature.tokens
        self._files["pooled"][row] = signature.pooled
        self._files["cells"][row] = signature.cells
        self._files["absmax"][row] = narrowed(signature.absmax, self.probe.dtype)
        self._files["sketch"][row] = folded(signature.sketch)

    def close(self) -> dict[str, Any]:
        """Write the rest, and return the split's entry in the manifest."""
        table = pa.table({"sample_id": pa.array(self.plan.names, pa.string()), "n_tokens": pa.array(self.tokens)})
        write_table(self.out / f"{self.plan.split}.parquet", table)
        entry = {"samples": len(self.plan.names), "tokens": int(self.tokens.sum())}
        if self.plan.split == "pool":
            return entry
        path = self.out / f"{self.plan.split}.magnitudes.npy"
        if self.plan.counts_known and self.counter is None:
            link_or_copy(self.earlier.file(self.plan.split, "magnitudes"), path)
            return {**entry, "first_bucket": self.earlier.counts(self.plan.split)[1]}
        assert self.counter is not None
        counts = self.counter.result()
        if self.plan.counts_known:
            before, first = self.earlier.counts(self.plan.split)
            counts[:, first : first + before.shape[1]] += before
        occupied = np.flatnonzero(counts.any(axis=0))
        first, last = int(occupied[0]), int(occupied[-1]) + 1
        np.save(path, np.ascontiguousarray(counts[:, first:last]), allow_pickle=False)
        return {**entry, "first_bucket": first}


def _measure(model: Any, wanted: list[str], samples: Path, probe: Probe, writers: dict[str, _Writer]) -> None:
    """Forward each of the samples once, for every split that needs it."""
    from plumbline.sample_features.measure import Counter, measured

    device = next(model.parameters()).device
    counting = {name: writer for writer in writers.values() for name in writer.plan.to_count}
    adding = {name: writer for writer in writers.values() for name in writer.plan.missing}

    def counter_of(name: str) -> Counter | None:
        writer = counting.get(name)
        if writer is None:
            return None
        if writer.counter is None:
            writer.counter = Counter(probe, device)
        return writer.counter

    tokens = _token_ids(samples, list(writers), set(wanted))
    todo = [(name, tokens[name]) for name in wanted]
    total = sum(len(ids) for ids in tokens.values())
    with Bar(total=total, desc="signatures", unit="token", unit_scale=True, mininterval=1) as bar:
        for signature in measured(model, todo, probe, counter_of, bar.update):
            if signature.sample_id in adding:
                adding[signature.sample_id].add(signature)


def _token_ids(samples: Path, splits: Sequence[str], wanted: set[str]) -> dict[str, NDArray[np.int32]]:
    """Token ids of the named samples; token ids of shards without one are not read."""
    import pyarrow.compute as pc

    value_set = pa.array(sorted(wanted), pa.string())
    tokens: dict[str, NDArray[np.int32]] = {}
    for shard in shards(samples):
        here = [b.column(0) for b in iter_samples(samples, splits, ["sample_id"], only_shards=[shard])]
        if not any(pc.any(pc.is_in(column, value_set)).as_py() for column in here):
            continue
        for batch in iter_samples(samples, splits, ["sample_id", "input_ids"], only_shards=[shard]):
            rows = np.flatnonzero(pc.is_in(batch.column(0), value_set).to_numpy(zero_copy_only=False))
            for row in rows.tolist():
                tokens[batch.column(0)[row].as_py()] = np.array(batch.column(1)[row].values, dtype=np.int32)
    return tokens
