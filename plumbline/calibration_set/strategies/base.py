"""The interface of a strategy: the pool it reads and the selection it returns. A strategy needs no other module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from plumbline.tokenized_samples.batches import sample_id as sample_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.sample_features.reader import Embeddings
    from plumbline.sample_features.signatures import Signatures

COLUMNS = ("sample_id", "doc_id", "domain", "source", "n_tokens", "n_special", "assistant_spans")


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of the pool's sample `row`; a calibration sample may join several pieces."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Readers:
    """Functions that read what is large or costly, by sample id, when a strategy asks for it."""

    input_ids: Callable[[Sequence[str]], dict[str, NDArray[np.int32]]]
    embeddings: Callable[[pa.ChunkedArray], Embeddings]
    """By sample ids as Arrow strings. Looks rows up; no embedding is read yet."""
    signatures: Callable[[Sequence[str]], Signatures]
    """Reads stored signatures; computes each missing one by a forward pass of the base model."""
    signed: Callable[[], Sequence[str]]
    """Ids of the samples whose signature is stored."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one split, sorted by sample id, so that no result depends on the order on disk.

    Token ids, embeddings and signatures are read only when asked for.
    """

    table: pa.Table
    """Columns `COLUMNS`, sorted by sample_id."""
    readers: Readers

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
        """Number of special tokens that the tokenizer puts before a text (beginning-of-sequence).

        Inferred from 256 samples with special tokens, spread over the split: the length of their common beginning, at
        most the number of tokens that the tokenizer added.
        """
        special = self.table["n_special"].to_numpy()
        rows = np.flatnonzero(special)
        if not len(rows):
            return 0
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, num=min(len(rows), 256)).astype(np.int64))]
        most = int(special[rows].min())
        starts = [tuple(ids[:most].tolist()) for ids in self.input_ids(rows)]
        first, last = min(starts), max(starts)  # a common beginning of the first and the last in order is one of all
        shared = (position for position, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
        return next(shared, min(len(first), len(last)))

    def input_ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Token ids of the samples at `rows`, each int32 (n_tokens,)."""
        names = self.names(rows)
        tokens = self.readers.input_ids(names)
        return [tokens[name] for name in names]

    def assistant_spans(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int32] | None]:
        """Token spans [start, stop, ...] that a chat's assistant wrote; None: not a chat, or not known."""
        lists = self.table["assistant_spans"].take(pa.array(rows, pa.int64())).to_pylist()
        return [None if spans is None else np.array(spans, dtype=np.int32) for spans in lists]

    def embeddings(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        """Embeddings of the samples at `rows` (None: all), float16 (len(rows), d), each of length 1."""
        return self.stored_embeddings.take(rows)

    @cached_property
    def stored_embeddings(self) -> Embeddings:
        """The embeddings on disk, in row order: `take(rows)` reads some, `blocks(size)` passes over all.

        Use these for large pools: a million embeddings take 0.8 GB as stored and twice that as float32.
        """
        return self.readers.embeddings(self.table["sample_id"])

    def signatures(self, rows: Sequence[int] | NDArray[np.int64]) -> Signatures:
        """Activation signatures of the samples at `rows`; each that is not stored costs a forward pass."""
        return self.readers.signatures(self.names(rows))

    @cached_property
    def signed(self) -> NDArray[np.int64]:
        """Rows whose signature is stored, ascending, int64: a uniform draw of the split (see `features.signatures`)."""
        stored = pa.array(self.readers.signed(), pa.string())
        return np.flatnonzero(pc.is_in(self.table["sample_id"], stored).to_numpy()).astype(np.int64)

    def names(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Sample ids of the samples at `rows`."""
        return list(self.table["sample_id"].take(pa.array(rows, pa.int64())).to_pylist())


@dataclass(frozen=True, eq=False)
class Pool(Samples):
    """The samples a strategy may choose from, and everything else it may read."""

    stream: NDArray[np.int64]
    """Place of each sample in the stream of the corpus (order of sources, files, rows, windows), int64 (N,)."""
    tuning: Samples
    """The tuning split; it shares no document with the pool."""
    production: Samples | None
    """The production sample of params.yaml (`corpus.production`), if there is one."""
    load_model: Callable[[], PreTrainedModel]
    """Returns the base model in evaluation mode. It is shared: restore weights, gradients and hooks."""
    load_tokenizer: Callable[[], PreTrainedTokenizerBase]

    @property
    def reference(self) -> Samples:
        """The samples the set should represent: the production sample, or the tuning split if there is none."""
        return self.tuning if self.production is None else self.production

    @property
    def reference_name(self) -> str:
        """Name of the split `reference`: `production` or `tuning`."""
        return "tuning" if self.production is None else "production"

    def subset(self, rows: NDArray[np.int64]) -> Pool:
        """The pool restricted to the samples at `rows` (ascending)."""
        return replace(self, table=self.table.take(pa.array(rows)), stream=self.stream[rows])


@dataclass(frozen=True)
class Selection:
    """The chosen samples, in order, each with the reason it was picked.

    A sample is a row of the pool (each at most once), is joined of `pieces` of rows, or was written by the strategy.
    """

    indices: NDArray[np.int64]
    """Row of the pool per sample; the row of the first piece for joined samples, -1 for written ones."""
    reasons: list[dict[str, Any]]
    """Per sample, JSON-able: bucket, cluster, gain ..."""
    pieces: dict[int, tuple[Piece, ...]] = field(default_factory=dict)
    """Position in `indices` -> the pieces that the sample is joined of."""
    written: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    """Position in `indices` -> token ids of a sample from no document (the base model's own text)."""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts about the whole selection for the manifest: quotas, fills, objective reached ...; under `short`,
    why there are fewer than n."""


def require_domains(domains: Iterable[str], present: Sequence[str], where: str) -> None:
    """Refuse domains that the pool lacks.

    Args:
        present: the pool's domains.
        where: where they are named, for the message.

    Raises:
        ValueError: names the first that is absent and the one that is closest.
    """
    for domain in domains:
        if domain not in present:
            close = get_close_matches(domain, present, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise ValueError(
                f"{where}: the pool has no domain `{domain}`{hint} (it has {', '.join(present) or 'no samples at all'})"
            )


def generator(seed: int, strategy: str) -> np.random.Generator:
    """The random numbers of a strategy: PCG64, seeded by `seed` and the strategy's name.

    Two strategies with the same seed draw independently. The stream depends neither on the version of Python nor on
    earlier draws.
    """
    digest = hashlib.sha256(strategy.encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")])))
