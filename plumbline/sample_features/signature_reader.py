"""Reading the signatures in sample_features: arrays are memory-mapped and read when a sample is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plumbline.sample_features.probe import Probe, load_probe
from plumbline.sample_features.reader import read_manifest
from plumbline.sample_features.signatures import MANTISSA_BITS, Magnitudes, Signatures, SignatureSite

FOLDER = "signatures"
LOWEST_EXPONENT, OCTAVES = -20, 40


def signature_manifest(features: Path) -> dict[str, Any]:
    """The part of the manifest on signatures: settings, digests of model and probe, sites, splits.

    Raises:
        ValueError: there are none.
    """
    manifest = read_manifest(features)
    if "signatures" not in manifest:
        raise ValueError(f"{features.name} is older than signatures; run sample_features again")
    if manifest["signatures"] is None:
        raise ValueError(
            "sample_features holds no activation signatures, as params.yaml says `features.signatures: null`; take "
            "that line out, or give sizes, for example `signatures: {pool: 1024, reference: 512}`, and run "
            "sample_features again"
        )
    entry: dict[str, Any] = manifest["signatures"]
    return entry


def read_probe(features: Path) -> Probe:
    """The probe with which the signatures were measured."""
    signature_manifest(features)
    return load_probe(features / FOLDER / "probe.safetensors")


def read_magnitudes(features: Path, split: str) -> Magnitudes:
    """Magnitudes of the samples of a reference split (tuning, production) whose signatures are stored.

    Raises:
        ValueError: there are none for that split.
    """
    about = signature_manifest(features)
    entry = about["splits"].get(split, {})
    if "first_bucket" not in entry:
        have = ", ".join(name for name, entry in about["splits"].items() if "first_bucket" in entry)
        raise ValueError(f"{features.name}: no magnitudes of split {split!r}, it has those of {have or 'none'}")
    counts = np.load(features / FOLDER / f"{split}.magnitudes.npy", mmap_mode="r", allow_pickle=False)
    largest = Stored(features).file(split, "absmax").max(axis=0)  # bfloat16 bit patterns sort, as none is negative
    return magnitudes(counts, entry["first_bucket"], widened(largest))


def bucket_edges() -> NDArray[np.float64]:
    """Edges of all buckets, ascending: 0, the bfloat16 values with MANTISSA_BITS bits in the window, infinity."""
    number = np.arange((OCTAVES << MANTISSA_BITS) + 1)
    step, octave = number % (1 << MANTISSA_BITS), number >> MANTISSA_BITS
    window = (1 + step / (1 << MANTISSA_BITS)) * 2.0 ** (octave + LOWEST_EXPONENT)
    return np.concatenate([[0.0], window, [np.inf]])


def magnitudes(counts: NDArray[np.int32], first: int, largest: NDArray[np.float32] | None = None) -> Magnitudes:
    """`Magnitudes` from counts (W, b) of the buckets from number `first` on; the other buckets are empty."""
    edges = bucket_edges()
    last = first + counts.shape[1]
    lower, upper = int(first > 0), int(last < len(edges) - 1)
    window = edges[first : last + 1]
    return Magnitudes(
        np.concatenate([[0.0] * lower, window, [np.inf] * upper]),
        np.pad(counts.astype(np.int64), ((0, 0), (lower, upper))),
        largest,
    )


@dataclass(frozen=True)
class Stored:
    """The stored signatures of an artifact; rows are numbered across its splits."""

    features: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        return signature_manifest(self.features)

    @cached_property
    def sites(self) -> tuple[SignatureSite, ...]:
        return tuple(SignatureSite(**site) for site in self.about["sites"])

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """By split: sample_id and n_tokens."""
        return {split: pq.read_table(self.features / FOLDER / f"{split}.parquet") for split in self.about["splits"]}

    @cached_property
    def table(self) -> pa.Table:
        """sample_id and n_tokens of all of them."""
        return pa.concat_tables(self.tables.values())

    @property
    def sample_ids(self) -> pa.ChunkedArray:
        column: pa.ChunkedArray = self.table["sample_id"]
        return column

    def rows_of(self, sample_ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.int64]:
        """Row of each sample, -1 where it is not stored."""
        wanted = sample_ids if isinstance(sample_ids, pa.ChunkedArray) else pa.array(sample_ids, pa.string())
        rows = pc.fill_null(pc.index_in(wanted, value_set=self.sample_ids), -1)
        return np.asarray(rows.to_numpy(), dtype=np.int64)

    def file(self, split: str, name: str) -> NDArray[Any]:
        """An array of a split, memory-mapped."""
        path = self.features / FOLDER / f"{split}.{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except ValueError as error:
            raise ValueError(f"{path}: not a NumPy array ({error}); restore it with `dvc checkout --force`") from error

    def raw(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of an array in the format on disk."""
        out: NDArray[Any] | None = None
        start = 0
        for split, table in self.tables.items():
            file = self.file(split, name)
            here = np.flatnonzero((rows >= start) & (rows < start + table.num_rows))
            if out is None:
                out = np.empty((len(rows), *file.shape[1:]), file.dtype)
            out[here] = file[rows[here] - start]
            start += table.num_rows
        assert out is not None  # there is always a pool split
        return out

    def take(self, rows: NDArray[np.int64]) -> Signatures:
        """The signatures at `rows`, all of them stored."""
        table = self.table.take(pa.array(rows))
        return Signatures(
            tuple(table["sample_id"].to_pylist()),
            self.sites,
            table["n_tokens"].to_numpy().astype(np.int64),
            self.raw("pooled", rows),
            self.raw("cells", rows),
            widened(self.raw("absmax", rows)),
            unfolded(self.raw("sketch", rows), self.about["settings"]["sketch"]),
        )


def widened(absmax: NDArray[Any]) -> NDArray[np.float32]:
    """float32 from the stored format: float32, float16, or uint16 for bfloat16, which NumPy lacks."""
    if absmax.dtype == np.uint16:
        return (absmax.astype(np.uint32) << 16).view(np.float32)
    return absmax.astype(np.float32)


def narrowed(absmax: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The stored format of maxima; exact, as they are values of `dtype`."""
    if dtype == "bfloat16":
        return (absmax.view(np.uint32) >> 16).astype(np.uint16)
    return absmax.astype(np.float16 if dtype == "float16" else np.float32)


def folded(sketch: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper triangles, (..., r (r + 1) / 2), row by row, of symmetric matrices (..., r, r)."""
    above, right = np.triu_indices(sketch.shape[-1])
    return np.ascontiguousarray(sketch[..., above, right])


def unfolded(triangle: NDArray[np.float32], r: int) -> NDArray[np.float32]:
    """The inverse of `folded`."""
    above, right = np.triu_indices(r)
    out = np.empty((*triangle.shape[:-1], r, r), np.float32)
    out[..., above, right] = triangle
    out[..., right, above] = triangle
    return out
