"""Features of a sample that need no base model: length, domain, and the embedding's leading directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from plumbline.calibration_set.strategies.base import Samples

FITTED = 16384
"""Samples whose embeddings determine the directions; more would not change them."""
BLOCK = 65536
"""Embeddings read at once."""
FLAT = 1e-6
"""A column with a smaller deviation is constant; its variation is rounding error and must not be scaled up."""


def cheap_features(
    samples: Samples, rows: NDArray[np.int64], dimensions: int
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Standardised features of the samples at `rows`: every column has mean 0 and deviation 1, or is 0 where flat.

    log length; one column per domain; the embedding along its `dimensions` directions of largest variance. Rounded to
    6 decimals, so that no decision depends on the last bits of a matrix product.

    Args:
        dimensions: of the embedding; 0: do not read embeddings.

    Returns:
        float64 (len(rows), F) and a name per column.
    """
    lengths = np.log(np.maximum(samples.lengths[rows], 1))
    domain_of = np.array(samples.domains)[rows]
    domains = sorted(set(domain_of.tolist()))
    columns = [lengths, *(np.asarray(domain_of == domain, dtype=np.float64) for domain in domains)]
    names = ["log_length", *(f"domain {domain}" for domain in domains)]
    x = np.stack(columns, 1)
    if dimensions:
        principal = principal_embedding(samples, rows, dimensions)
        x = np.concatenate([x, principal], 1)
        names += [f"embedding {number}" for number in range(principal.shape[1])]
    return standardised(x), tuple(names)


def principal_embedding(samples: Samples, rows: NDArray[np.int64], dimensions: int) -> NDArray[np.float64]:
    """Coordinates of the embeddings along their leading principal directions, float64 (len(rows), <= dimensions).

    Directions come from at most `FITTED` rows spread evenly (rows are sorted by a hash, so that is a random draw), and
    point to where their largest entry is positive.
    """
    fitted = rows[np.unique(np.linspace(0, len(rows) - 1, num=min(len(rows), FITTED)).astype(np.int64))]
    e = samples.embeddings(fitted).astype(np.float64)
    mean, directions = principal_directions(e, dimensions)
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    return np.concatenate([(samples.embeddings(block).astype(np.float64) - mean) @ directions for block in blocks])


def principal_directions(e: NDArray[np.float64], dimensions: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,) of the rows of e (N, d), and their leading eigenvectors (d, <= dimensions), signs fixed."""
    mean = e.mean(0)
    _, vectors = np.linalg.eigh((e - mean).T @ (e - mean))
    directions = vectors[:, ::-1][:, :dimensions]
    largest = np.abs(directions).argmax(0)
    signed: NDArray[np.float64] = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return mean, signed


def standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of mean 0 and deviation 1, rounded to 6 decimals; 0 where a column is flat."""
    x = x - x.mean(0)
    deviation = x.std(0)
    flat = deviation < FLAT
    scaled: NDArray[np.float64] = np.where(flat, 0.0, x / np.where(flat, 1.0, deviation))
    return np.round(scaled, 6) + 0.0  # no negative zero
