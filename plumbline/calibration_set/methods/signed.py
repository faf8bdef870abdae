"""Shared by strategies that read activations: candidates, reference, and comparison with random draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import Pool

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Signatures

DRAWS = 200


def signed_rows(pool: Pool, n: int, strategy: str) -> NDArray[np.int64]:
    """The candidates: rows of the pool whose signature is stored, ascending, int64 (m,) with m >= n.

    Raises:
        ValueError: fewer than n signatures are stored.
    """
    rows = pool.signed
    if len(rows) < n:
        raise ValueError(
            f"{strategy} chooses among samples whose activation signature is stored: asked for n = {n}, found "
            f"{len(rows)} of the {len(pool)} samples of the pool; raise features.signatures.pool in params.yaml "
            f"and run sample_features again, or lower n"
        )
    return rows


def reference_signatures(pool: Pool, strategy: str) -> tuple[str, Signatures]:
    """The split that the set is compared with (`production` or `tuning`), and its stored signatures.

    Raises:
        ValueError: that split has none.
    """
    split = pool.reference_name
    rows = pool.reference.signed
    if not len(rows):
        raise ValueError(
            f"{strategy} compares with the activations of the {split} split, which holds {len(pool.reference)} samples "
            f"and no stored signature; "
            + (
                "run sample_features again"
                if len(pool.reference)
                else "raise tokenize.splits.tuning in params.yaml or add documents"
            )
        )
    return split, pool.reference.signatures(rows)


def require_same_sites(candidates: Signatures, reference: Signatures) -> None:
    """Refuse to compare signatures that were measured at different sites.

    Raises:
        ValueError: the sites differ.
    """
    if candidates.sites != reference.sites:
        raise ValueError(
            f"signatures differ in their sites: {len(candidates.sites)} of the pool, {len(reference.sites)} of the "
            f"reference, or others; run sample_features again"
        )


def random_draws(rng: np.random.Generator, m: int, n: int, draws: int = DRAWS) -> list[NDArray[np.int64]]:
    """`draws` sets of n of m candidates, each drawn uniformly without replacement: positions, int64 (n,)."""
    return [rng.choice(m, n, replace=False).astype(np.int64) for _ in range(draws)]


def digits(value: float) -> float | None:
    """Four significant digits, since more would show the last bits of a sum; None for NaN, which JSON lacks."""
    return None if np.isnan(value) else float(f"{value:.4g}")


def beside_draws(value: float, null: NDArray[np.float64]) -> dict[str, Any]:
    """Compare a figure of the set with the same figure of random draws, float64 (draws,).

    Returns:
        JSON-able: value; null (median, p05, p95); percentile, the share of draws below the value (ties half); ratio,
        value / median (None where that is 0).
    """
    close = 1e-9
    below = int(np.sum(null < value - close))
    ties = int(np.sum(np.abs(null - value) <= close))
    low, median, high = (float(number) for number in np.percentile(null, [5, 50, 95]))
    return {
        "value": round(float(value), 6),
        "null": {"median": round(median, 6), "p05": round(low, 6), "p95": round(high, 6)},
        "percentile": 50 * (2 * below + ties) / len(null),
        "ratio": round(value / median, 4) if median > close else None,
    }
