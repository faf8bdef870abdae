"""What a strategy is given and what it gives back. A strategy is written against this module alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.sample_features.reader import Embeddings
    from plumbline.sample_features.signatures import Signatures

COLUMNS = ("sample_id", "doc_id", "domain", "source", "n_tokens", "n_special", "assistant_spans")


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of the pool's sample `row`; a calibration sample may be joined of several."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Readers:
    """How samples get at what is large or costly; each is called with sample ids when a strategy asks."""

    input_ids: Callable[[Sequence[str]], dict[str, NDArray[np.int32]]]
    embeddings: Callable[[pa.ChunkedArray], Embeddings]
    """By sample ids as Arrow strings: a lookup, once for all; no embedding is read yet."""
    signatures: Callable[[Sequence[str]], Signatures]
    """Stored ones are read; each missing one costs a forward pass of the base model."""
    signed: Callable[[], Sequence[str]]
    """Ids of the samples whose signature is stored."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one split, sorted by sample id, so that no result depends on the order on disk.

    Token ids, embeddings and signatures are read when asked for: who needs lengths alone opens none of them.
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
        """How many special tokens the tokenizer puts before a text (beginning-of-sequence).

        Read off the samples: what 256 of those with special tokens, spread over the split, begin with in common, and
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
        tokens = self.readers.input_ids(names)
        return [tokens[name] for name in names]

    def assistant_spans(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int32] | None]:
        """What a chat's assistant wrote of the samples at `rows`: [start, stop, ...]; None: no chat, or not known."""
        lists = self.table["assistant_spans"].take(pa.array(rows, pa.int64())).to_pylist()
        return [None if spans is None else np.array(spans, dtype=np.int32) for spans in lists]

    def embeddings(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        """Embeddings of the samples at `rows` (None: all), float16 (len(rows), d), each of length 1."""
        return self.stored_embeddings.take(rows)

    @cached_property
    def stored_embeddings(self) -> Embeddings:
        """The embeddings where they are, row by row as here: `take(rows)`, and `blocks(size)` for a pass over all.

        What has to scale reads these: all of a million samples' embeddings are 0.8 GB as stored, twice that as float32.
        """
        return self.readers.embeddings(self.table["sample_id"])

    def signatures(self, rows: Sequence[int] | NDArray[np.int64]) -> Signatures:
        """What the base model computes for the samples at `rows`; each that is not stored costs a forward pass."""
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
    """The samples a strategy may choose from, and what it may look at to choose well."""

    stream: NDArray[np.int64]
    """Place of each sample in the stream of the corpus (order of sources, files, rows, windows), int64 (N,)."""
    tuning: Samples
    """The tuning split; it shares no document with the pool."""
    production: Samples | None
    """The production sample of params.yaml (`corpus.production`), if there is one."""
    load_model: Callable[[], PreTrainedModel]
    """The base model, in evaluation mode. It is shared: leave weights, gradients and hooks as they were."""
    load_tokenizer: Callable[[], PreTrainedTokenizerBase]

    @property
    def reference(self) -> Samples:
        """What the set should represent: the production sample, or where none is given the tuning split."""
        return self.tuning if self.production is None else self.production

    @property
    def reference_name(self) -> str:
        """The split that `reference` is: `production` or `tuning`."""
        return "tuning" if self.production is None else "production"

    def subset(self, rows: NDArray[np.int64]) -> Pool:
        """The pool with only the samples at `rows` (ascending); everything else stays."""
        return replace(self, table=self.table.take(pa.array(rows)), stream=self.stream[rows])


@dataclass(frozen=True)
class Selection:
    """The chosen samples, in order, each with the reason it was picked.

    A sample is a row of the pool, each at most once; or it is cut and joined from `pieces` of rows; or the strategy
    wrote it itself.
    """

    indices: NDArray[np.int64]
    """Row of the pool per sample; for pieces the row that the first one is from, for written samples -1."""
    reasons: list[dict[str, Any]]
    """Per sample, JSON-able: bucket, cluster, gain ..."""
    pieces: dict[int, tuple[Piece, ...]] = field(default_factory=dict)
    """Position in `indices` -> the parts that the sample is joined of."""
    written: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    """Position in `indices` -> token ids of a sample that no document holds (the base model's own text)."""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts about the whole selection for the manifest: quotas, fills, objective reached ...; under `short`,
    why there are fewer than n."""


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
