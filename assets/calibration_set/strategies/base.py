"""What every strategy is given and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

COLUMNS = ("sample_id", "doc_id", "domain", "source", "n_tokens", "n_special")


@dataclass(frozen=True)
class Window:
    """A sample cut out of a longer one: its first `keep` tokens (the special ones), then tokens `start` to `stop`."""

    keep: int
    start: int
    stop: int

    def cut(self, input_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tokens of the window, int32 (keep + stop - start,)."""
        return np.concatenate([input_ids[: self.keep], input_ids[self.start : self.stop]])


@dataclass(frozen=True, eq=False)
class Pool:
    """The samples a strategy may choose from, sorted by sample id, so that no result depends on the order on disk.

    Token ids and embeddings are read when a strategy asks for them: one that needs lengths alone opens neither.
    """

    table: pa.Table
    """Columns `COLUMNS`, sorted by sample_id."""
    read_input_ids: Callable[[Sequence[str]], dict[str, NDArray[np.int32]]]
    read_embeddings: Callable[[Sequence[str]], NDArray[np.float16]]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def sample_ids(self) -> list[str]:
        """Hex SHA-256 of each sample's token ids."""
        return list(self.table["sample_id"].to_pylist())

    @property
    def doc_ids(self) -> list[str]:
        """The document that each sample was cut from."""
        return list(self.table["doc_id"].to_pylist())

    @property
    def domains(self) -> list[str]:
        """The domain of each sample."""
        return list(self.table["domain"].to_pylist())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per sample, int64 (N,)."""
        lengths: NDArray[np.int64] = self.table["n_tokens"].to_numpy().astype(np.int64)
        return lengths

    @cached_property
    def special_prefix(self) -> int:
        """How many special tokens the tokenizer puts before a text (beginning-of-sequence).

        Read off the samples: what 256 of those with special tokens, spread over the pool, begin with in common, and
        never more than the tokenizer added.
        """
        special = self.table["n_special"].to_numpy()
        rows = np.flatnonzero(special)
        if not len(rows):
            return 0
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, num=min(len(rows), 256)).astype(np.int64))]
        most = int(special[rows].min())
        starts = [tuple(ids[:most].tolist()) for ids in self.input_ids(rows)]
        first, last = min(starts), max(starts)  # what these two share, every tuple between them shares
        shared = (position for position, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        return next(shared, min(len(first), len(last)))

    def input_ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Token ids of the samples at `rows`, each int32 (n_tokens,)."""
        names = self.names(rows)
        found = self.read_input_ids(names)
        return [found[name] for name in names]

    def embeddings(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        """Embeddings of the samples at `rows` (None: all), float16 (len(rows), d), each of length 1."""
        return self.read_embeddings(self.names(range(len(self)) if rows is None else rows))

    def names(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Sample ids of the samples at `rows`."""
        return list(self.table["sample_id"].take(pa.array(rows, pa.int64())).to_pylist())


@dataclass(frozen=True)
class Selection:
    """The chosen rows of the pool, in order, each once, with the reason it was picked."""

    indices: NDArray[np.int64]
    reasons: list[dict[str, Any]]
    """Per chosen sample, JSON-able: bucket, cluster, gain ..."""
    windows: dict[int, Window] = field(default_factory=dict)
    """Position in `indices` -> the part of that sample that is used; a position that is absent uses all of it."""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts about the whole selection for the manifest: quotas, fills, objective reached ..."""


def sample_id(input_ids: NDArray[np.int32]) -> str:
    """The id of a sample: SHA-256 (hex) of its token ids as little-endian int32."""
    return hashlib.sha256(np.ascontiguousarray(input_ids, dtype="<i4").tobytes()).hexdigest()


def generator(seed: int, strategy: str) -> np.random.Generator:
    """The random numbers of a strategy: PCG64, seeded by `seed` and the strategy's name.

    Two strategies with one seed draw independently; the stream does not depend on the version of Python or on what
    was drawn before.
    """
    digest = hashlib.sha256(strategy.encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")])))
