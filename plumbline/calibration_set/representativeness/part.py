"""The data of a comparison: lengths, domains, token counts and embeddings of a set, the pool or production."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import Samples

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Signatures

LARGEST = 16384
"""Most samples of the pool and of production to compare: those with the lowest ids, a uniform draw, since an id is a
digest of the content."""
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Part:
    """N samples."""

    lengths: NDArray[np.int64]
    """Tokens per sample, (N,)."""
    domain_tokens: NDArray[np.int64]
    """Tokens of each domain, (N, D); a joined sample may have several domains, one that the model wrote has none."""
    fold: NDArray[np.int64]
    """Fold 0 to FOLDS - 1, the same for all samples of a document, (N,)."""
    first: NDArray[np.int64]
    """First token id, (N,)."""
    counts: Any
    """scipy.sparse.csr_array (N, largest token id + 1), int64: how often each token id occurs."""
    embeddings: NDArray[np.float64] | None
    """(N, d), of length 1 up to rounding to float16; None: there are none."""
    signatures: Signatures | None = None
    """Activation signatures; None: not measured. Those of the pool and of production are in `Activations`, since only
    some of their samples have one."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: NDArray[np.int64]) -> Part:
        """The samples at `rows`, in that order; rows may repeat."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        counts = self.counts[rows]
        return Part(self.lengths[rows], self.domain_tokens[rows], self.fold[rows], self.first[rows], counts, embeddings)


def part(
    input_ids: Sequence[NDArray[np.int32]],
    domain_tokens: NDArray[np.int64],
    documents: Sequence[str],
    embeddings: NDArray[Any] | None,
    signatures: Signatures | None = None,
) -> Part:
    """Prepare N samples from their token ids, tokens per domain (N, D), documents, embeddings (N, d) and signatures."""
    from scipy.sparse import csr_array

    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate(input_ids).astype(np.int64)
    first = flat[offsets[:-1]]  # before `sum_duplicates` sorts the ids in place
    shape = (len(lengths), int(flat.max()) + 1)
    counts = csr_array((np.ones(len(flat), np.int64), flat, offsets), shape=shape)
    counts.sum_duplicates()
    fold = np.array([_fold(name) for name in documents], dtype=np.int64)
    exact = None if embeddings is None else np.asarray(embeddings, dtype=np.float64)
    return Part(lengths, domain_tokens, fold, first, counts, exact, signatures)


def part_of(samples: Samples, domains: Sequence[str], embedded: bool) -> Part:
    """The first `LARGEST` samples of a split; `domains` are the columns of `domain_tokens`."""
    rows = np.arange(min(len(samples), LARGEST))
    lengths = samples.lengths[rows]
    by_domain = one_hot(samples.table["domain"].slice(0, len(rows)).to_pylist(), lengths, domains)
    documents = samples.table["doc_id"].slice(0, len(rows)).to_pylist()
    return part(samples.input_ids(rows), by_domain, documents, samples.embeddings(rows) if embedded else None)


def one_hot(domain_of: Sequence[str], lengths: NDArray[np.int64], domains: Sequence[str]) -> NDArray[np.int64]:
    """Tokens per domain, int64 (N, D), of samples of one domain each."""
    column = {name: place for place, name in enumerate(domains)}
    tokens = np.zeros((len(domain_of), len(domains)), dtype=np.int64)
    tokens[np.arange(len(domain_of)), [column[name] for name in domain_of]] = lengths
    return tokens


def selection_matrix(rows: NDArray[np.int64], population: int) -> Any:
    """Draws (B, n) as a matrix (B, population) of counts: its product with values sums them per draw."""
    from scipy.sparse import csr_array

    draws, n = rows.shape
    return csr_array((np.ones(rows.size), rows.ravel(), np.arange(0, rows.size + 1, n)), shape=(draws, population))


def _fold(document: str) -> int:
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") % FOLDS
