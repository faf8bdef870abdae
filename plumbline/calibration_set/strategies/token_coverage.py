"""Greedy maximum coverage of production's tokens: frequent tokens of production should occur in the set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.token_counts import (
    Counts,
    Vocabulary,
    reference_of,
    token_counts,
    vocabulary,
)
from plumbline.calibration_set.strategies.base import Pool, Selection

DRAWS = 200
SHOWN = 8
BLOCK = 16_384
"""Candidates whose gains are computed at once, which bounds memory beside the counts."""

Positive = Annotated[int, Field(ge=1)]


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    tau: Positive = 1,
    ngram: Literal[1, 2] = 1,
    per_token: bool = False,
    candidates: Positive = 20_000,
) -> Selection:
    """Choose the samples that together cover the most of production's token mass.

    Options:
        tau: number of occurrences in the set at which a token counts as covered.
        ngram: 1 covers tokens, 2 pairs of neighbouring tokens (many more kinds, so gains stay above 0 for longer).
        per_token: choose the sample with the largest gain per token of its own. Without it, long samples are preferred
            and the set is longer than production; with it, short ones are preferred and n of them cover less in total.
            Plain greedy keeps its bound for a fixed number of samples, so the better of both, as in CELF (with a budget
            in tokens), is not needed.
        candidates: number of samples drawn uniformly from the pool; the notes report it.

    Optimises: f(A) = sum over v of p_v min(1, c_v(A) / tau), with p the reference's distribution over tokens
    (production's, else the tuning split's) and c_v(A) how often A has v. Monotone and submodular: without per_token at
    least 1 - 1/e of the best set of the candidates. Special tokens count as any other. Once every gain is 0, the
    rest of the set is a random draw, and the notes say after how many samples.
    Cost: token ids of the reference and of the candidates are read once; memory is 8 bytes per candidate and kind in
    it; then O(kinds of a sample) per gain. All numbers are whole, so nothing depends on rounding or threads.
    Source: Nemhauser, Wolsey, Fisher 1978 (greedy); Leskovec et al. 2007 (CELF: lazy, and gain per cost); missing mass
    after Good 1953.
    """
    reference, name = reference_of(pool, "token_coverage")
    words = vocabulary(reference, ngram)
    rows = rng.permutation(len(pool))[: max(n, candidates)].astype(np.int64)  # in random order, which breaks ties
    counts = token_counts(pool, rows, words, tau)
    lengths = pool.lengths[rows]
    cover = TokenCoverage(counts, words.occurrences, tau, lengths if per_token else None)
    taken, _ = lazy_greedy(cover, np.arange(len(rows)), n)
    whole = max(int(words.occurrences.sum()), 1)
    reasons, reached = _explain(taken, counts, words, tau, whole)
    once = np.count_nonzero(words.occurrences == 1)
    gains = np.diff(reached, prepend=0.0)
    chosen = int(lengths[taken].sum())
    notes: dict[str, Any] = {
        "reference": name,
        "reference_samples": len(reference),
        "reference_tokens": int(reference.lengths.sum()),
        "kinds": len(words.codes),
        # share of production's next tokens that the reference does not hold (Good-Turing)
        "missing_mass": once / whole,
        "pool": len(pool),
        "candidates": len(rows),
        "objective": reached[-1],
        "mass": _mass(counts, taken, words, 1) / whole,
        "tokens": chosen,
        "curve": {str(k): reached[k - 1] for k in _powers(n)},
        "exhausted_after": int(np.flatnonzero(gains > 0).max(initial=-1)) + 1 if (gains <= 0).any() else None,
        "random_draws": {"draws": DRAWS, **_random(counts, words, lengths, n, tau, whole, rng)},
    }
    return Selection(rows[taken], reasons, notes=_rounded(notes))


class TokenCoverage:
    """f(A) tau N, a whole number: sum over v of P_v min(tau, c_v(A)), where P counts the N tokens of the reference.

    With `cost`, gains are per unit of it. `counts` may be capped at tau.
    """

    def __init__(
        self, counts: Counts, occurrences: NDArray[np.int64], tau: int, cost: NDArray[np.int64] | None = None
    ) -> None:
        self.counts, self.occurrences, self.cost = counts, occurrences, cost
        self.lacking = np.full(len(occurrences), tau, dtype=np.int64)

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Gain of each row, float64 (len(rows),)."""
        blocks = [self._gains(rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]
        gains = np.concatenate([np.empty(0, np.int64), *blocks])
        return gains.astype(np.float64) if self.cost is None else gains / self.cost[rows]

    def _gains(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        kinds, times, sizes = self.counts.of(rows)
        worth = np.minimum(times, self.lacking[kinds]) * self.occurrences[kinds]
        total = np.concatenate([[0], np.cumsum(worth)])
        ends = np.cumsum(sizes)
        gains: NDArray[np.int64] = total[ends] - total[ends - sizes]
        return gains

    def add(self, row: int) -> None:
        """A becomes A + row."""
        kinds, times, _ = self.counts.of(np.array([row]))
        self.lacking[kinds] = np.maximum(self.lacking[kinds] - times, 0)


def _explain(
    taken: NDArray[np.int64], counts: Counts, words: Vocabulary, tau: int, whole: int
) -> tuple[list[dict[str, Any]], list[float]]:
    """The reason of each sample, and f after each."""
    cover = TokenCoverage(counts, words.occurrences, tau)
    seen = np.zeros(len(words.codes), dtype=bool)
    value = 0
    reasons: list[dict[str, Any]] = []
    reached: list[float] = []
    for row in taken:
        gain = int(cover.gains(np.array([row]))[0])
        cover.add(int(row))
        kinds = counts.of(np.array([row]))[0]
        new = kinds[~seen[kinds]]
        seen[new] = True
        value += gain
        reached.append(value / (tau * whole))
        heaviest = new[np.lexsort((new, -words.occurrences[new]))][:SHOWN]
        reasons.append(
            {
                "gain": round(gain / (tau * whole), 6),
                "covered": round(reached[-1], 6),
                "new_kinds": len(new),
                "newly_covered": [words.show(int(kind)) for kind in heaviest],
            }
        )
    return reasons, reached


def _mass(counts: Counts, rows: NDArray[np.int64], words: Vocabulary, tau: int) -> int:
    return int(np.minimum(counts.total(rows, len(words.codes)), tau) @ words.occurrences)


def _random(
    counts: Counts,
    words: Vocabulary,
    lengths: NDArray[np.int64],
    n: int,
    tau: int,
    whole: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Medians over random sets of n candidates."""
    draws = [rng.choice(len(lengths), n, replace=False) for _ in range(DRAWS)]
    return {
        "objective": float(np.median([_mass(counts, rows, words, tau) for rows in draws])) / (tau * whole),
        "mass": float(np.median([_mass(counts, rows, words, 1) for rows in draws])) / whole,
        "tokens": float(np.median([lengths[rows].sum() for rows in draws])),
    }


def _powers(n: int) -> list[int]:
    return [*(2**k for k in range(n.bit_length()) if 2**k < n), n]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value
