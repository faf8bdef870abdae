"""Match a production sample in length, tokens and embedding at once, by herding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.calibration_set.methods.cheap_features import principal_directions
from plumbline.calibration_set.methods.token_counts import reference_of
from plumbline.calibration_set.strategies.base import Pool, Samples, Selection
from plumbline.progress import Bar

PARTS = ("length", "tokens", "embedding")
QUANTILES = 32
"""Quantiles of the lengths of reference and of candidates at which the distributions are compared."""
BUCKETS = 256
"""Hash buckets of token ids."""
WAVES = 256
"""Random Fourier features of the embedding."""
SCALES = (0.5, 1.0, 2.0)
"""Widths of the embedding's kernel, in median distances."""
FITTED = 8192
"""Samples of either side that determine the principal directions."""
PAIRED = 512
"""Samples whose mutual distances determine the kernel's width."""
BLOCK = 16_384
"""Samples whose token ids or embeddings are in memory at once."""
DRAWS = 200
UNIT = 2.0**-16
"""Features are whole multiples of it, so that sums are exact in any order."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Weights(BaseModel):
    """Weight of each part; only ratios matter, and a part of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: Weight = 1
    tokens: Weight = 1
    embedding: Weight = 1

    @model_validator(mode="after")
    def _one_at_least(self) -> Weights:
        if not self.length + self.tokens + self.embedding:
            raise ValueError("one of length, tokens, embedding must be above 0")
        return self


EQUAL = Weights()


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    weights: Weights = EQUAL,
    dimensions: Annotated[int, Field(ge=1)] = 32,
    candidates: Annotated[int, Field(ge=1)] = 20_000,
) -> Selection:
    """Choose the samples whose mean features are closest to those of the reference.

    Options:
        weights: of `length`, `tokens` and `embedding`.
        dimensions: leading principal directions of the embedding that are matched.
        candidates: number of samples drawn uniformly from the pool, and at most as many of the reference; the notes
            report both.

    Optimises: J(A) = || mean of phi over A - mean of phi over the reference ||^2, the reference being production, else
    the tuning split. phi has three parts. Length: indicators that the sample is no longer than each of some lengths, so
    that the mean is the cumulative distribution, and J the square of Cramer's distance in log length. Tokens: square
    roots of the shares of 256 hashed buckets of token ids (Hellinger). Embedding: random Fourier features, at three
    widths, of its principal coordinates: if their means agree, so do the distributions, whereas the mean embedding of
    two clusters equals that of one cluster between them. Each part is scaled so that a random candidate alone has
    squared distance 1, times the part's share of the weights. J is not submodular, and herding has no bound here, so
    the notes compare the distance with that of random draws.
    Cost: token ids and embeddings of candidates and reference are read once; then O(candidates) products of about 550
    features per sample chosen; about 5 kB of memory per candidate.
    Source: Welling, Herding dynamical weights to learn, ICML 2009; Chen, Welling, Smola, Super-samples from kernel
    herding, UAI 2010 (its greedy form, without replacement); Rahimi, Recht 2007 (Fourier features); Szekely, Rizzo 2013
    (Cramer's distance as energy distance).
    """
    reference, name = reference_of(pool, "domain_matched")
    rows = rng.permutation(len(pool))[: max(n, candidates)].astype(np.int64)
    of_reference = np.sort(rng.permutation(len(reference))[:candidates]).astype(np.int64)
    two = Two(pool, rows, reference, of_reference)
    share = {part: getattr(weights, part) for part in PARTS if getattr(weights, part)}
    features = {
        "length": lambda: length_features(two),
        "tokens": lambda: token_features(two),
        "embedding": lambda: embedding_features(two, dimensions, rng),
    }
    parts = {part: centred(*features[part](), weight / sum(share.values())) for part, weight in share.items()}
    taken = herd(np.concatenate(list(parts.values()), axis=1), n)
    after = {part: _distances(phi, taken) for part, phi in parts.items()}
    drawn = [rng.choice(len(rows), n, replace=False) for _ in range(DRAWS)]
    null = {part: np.array([_distances(phi, draw)[-1] for draw in drawn]) for part, phi in parts.items()}
    notes = {
        "reference": name,
        "reference_samples": len(of_reference),
        "pool": len(pool),
        "candidates": len(rows),
        "random_draws": DRAWS,
        "distance": {
            "all": _beside(sum(after[part][-1] for part in parts), np.sum(list(null.values()), axis=0)),
            **{part: _beside(after[part][-1], null[part]) for part in parts},
        },
    }
    return Selection(rows[taken], _reasons(after), notes=notes)


@dataclass(frozen=True, eq=False)
class Two:
    """The candidates and the reference."""

    pool: Samples
    rows: NDArray[np.int64]
    """The candidates, int64 (m,); ties go to the first."""
    reference: Samples
    of_reference: NDArray[np.int64]
    """Rows of the reference that are used, int64 (r,)."""

    def both(self) -> Iterator[tuple[Samples, NDArray[np.int64]]]:
        """Yield the candidates, then the reference."""
        yield self.pool, self.rows
        yield self.reference, self.of_reference


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features of the candidates, float32 (m, d), and of the reference, float32 (r, d)."""


def length_features(two: Two) -> Pair:
    """Features of length: 1[length <= edge] sqrt(log gap to the next edge), the edges being quantiles of both sides.

    The squared distance of two means is the integral of (F - G)^2 over log length, at the resolution of the edges.
    """
    lengths = [samples.lengths[rows] for samples, rows in two.both()]
    levels = np.linspace(0, 1, QUANTILES)
    edges = np.unique(np.concatenate([np.quantile(x, levels, method="inverted_cdf") for x in lengths]))
    gaps = np.diff(np.log(edges))
    a, b = (((x[:, None] <= edges[:-1]) * np.sqrt(gaps)).astype(np.float32) for x in lengths)
    return a, b


def token_features(two: Two) -> Pair:
    """Features of tokens: square roots of the shares of the buckets of a sample's token ids."""
    a, b = (
        np.concatenate([hellinger(ids) for block in _blocks(rows, "tokens") for ids in samples.input_ids(block)])
        for samples, rows in two.both()
    )
    return a.reshape(-1, BUCKETS), b.reshape(-1, BUCKETS)


def hellinger(input_ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """sqrt of the share of tokens in each bucket, float32 (BUCKETS,), of length 1."""
    mixed = (input_ids.astype(np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)  # Knuth: golden ratio * 2^32
    shares = np.bincount((mixed >> np.uint64(24)).astype(np.int64), minlength=BUCKETS) / len(input_ids)
    return np.sqrt(shares).astype(np.float32)


def embedding_features(two: Two, dimensions: int, rng: np.random.Generator) -> Pair:
    """Random Fourier features of the embeddings' principal coordinates.

    Their inner product approximates Gaussian kernels of three widths around the median distance between samples.
    """
    seen = [samples.embeddings(rows[:: -(-len(rows) // FITTED)]).astype(np.float64) for samples, rows in two.both()]
    mean, directions = principal_directions(np.concatenate(seen), dimensions)
    some = np.concatenate([(e[:PAIRED] - mean) @ directions for e in seen])
    squares = (some**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))[np.triu_indices(len(some), 1)]
    far = apart[apart > 1e-6]  # ignore duplicates of a text
    width = np.median(far) if len(far) else 1.0
    waves = rng.standard_normal((directions.shape[1], WAVES)) / (width * np.resize(SCALES, WAVES))
    phases = rng.uniform(0, 2 * np.pi, WAVES)

    def of(samples: Samples, block: NDArray[np.int64]) -> NDArray[np.float32]:
        x = (samples.embeddings(block).astype(np.float64) - mean) @ directions
        return (np.cos(x @ waves + phases) * np.sqrt(2 / WAVES)).astype(np.float32)

    a, b = (
        np.concatenate([of(samples, block) for block in _blocks(rows, "embeddings")]) for samples, rows in two.both()
    )
    return a, b


def centred(a: NDArray[np.float32], b: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    """The candidates' features minus the mean of the reference's, scaled to a mean square of `share`, in UNITs.

    All 0 if every candidate equals the reference's mean.
    """
    mean = np.mean(b, axis=0, dtype=np.float64)
    starts = range(0, len(a), BLOCK)
    square = sum(float(((a[start : start + BLOCK] - mean) ** 2).sum()) for start in starts) / len(a)
    factor = np.sqrt(share / square) if square > 1e-12 else 0.0
    phi = np.empty(a.shape)
    for start in starts:
        phi[start : start + BLOCK] = np.rint((a[start : start + BLOCK] - mean) * (factor / UNIT))
    return phi


def herd(phi: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Choose n samples, each the one that brings the mean of those chosen closest to 0; ties go to the first.

    With S the sum of those chosen, || S + phi_s ||^2 is least where || phi_s ||^2 + 2 phi_s S is.

    Args:
        phi: features minus the target mean, whole numbers, float64 (m, d).

    Returns:
        Rows of phi in the order chosen, int64 (n,).
    """
    cost = np.einsum("sd,sd->s", phi, phi)
    taken: list[int] = []
    for _ in Bar(range(n), desc="herding", unit=" samples"):
        best = int(np.argmin(cost))
        taken.append(best)
        cost += 2 * (phi @ phi[best])  # exact in any order: whole numbers, lengths about 2^16, products about 2^32
        cost[best] = np.inf
    return np.array(taken, dtype=np.int64)


def _blocks(rows: NDArray[np.int64], what: str) -> Iterator[NDArray[np.int64]]:
    with Bar(total=len(rows), desc=what, unit=" samples") as progress:
        for start in range(0, len(rows), BLOCK):
            yield rows[start : start + BLOCK]
            progress.update(len(rows[start : start + BLOCK]))


def _distances(phi: NDArray[np.float64], taken: NDArray[np.int64]) -> NDArray[np.float64]:
    """J of the first 1, 2, ... n of `taken`, float64 (n,)."""
    sums = np.cumsum(phi[taken], axis=0)
    distances: NDArray[np.float64] = ((sums * UNIT) ** 2).sum(axis=1) / np.arange(1, len(taken) + 1) ** 2
    return distances


def _beside(value: float, null: NDArray[np.float64]) -> dict[str, float]:
    """Compare a distance with those of random draws."""
    median = round(float(np.median(null)), 6)
    return {"value": round(float(value), 6), "random_median": median, "percentile": 100 * float(np.mean(null < value))}


def _reasons(after: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Per step the distance, and the part whose distance fell most."""
    every = np.stack(list(after.values()), axis=1)
    fallen = np.vstack([np.zeros(every.shape[1]), every[:-1] - every[1:]])
    names = [list(after)[part] if fall[part] > 0 else None for fall in fallen for part in [int(fall.argmax())]]
    return [
        {"step": step, "distance": round(float(distance), 6), "closer_in": part}
        for step, (distance, part) in enumerate(zip(every.sum(axis=1), names, strict=True))
    ]
