"""A contextual bandit that searches for samples that cover activation space, at a forward pass per look."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.cheap_features import cheap_features
from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.signed import reference_signatures
from plumbline.calibration_set.strategies.activation_coverage import ActivationCoverage, ladder
from plumbline.calibration_set.strategies.base import Pool, Selection
from plumbline.progress import Bar

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Signatures

EMBEDDING_DIMENSIONS = 8
LOOKS_PER_SAMPLE = 4
RECENT = 32
"""Number of latest rewards whose quantile is the threshold of acceptance."""


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    looks: Annotated[int, Field(ge=1)] | None = None,
    arms: Annotated[int, Field(ge=1)] = 32,
    alpha: Annotated[float, Field(ge=0)] = 1.0,
    discount: Annotated[float, Field(gt=0, le=1)] = 0.98,
    reward: Literal["sample", "tokens"] = "sample",
    outliers: Annotated[float, Field(ge=0, le=1)] = 0.5,
    rival_draws: Annotated[int, Field(ge=1)] = 1,
) -> Selection:
    """Learn which parts of the pool add coverage from few looks, then choose among the samples looked at.

    Options:
        looks: number of samples that may be looked at; null: 4 n. A stored signature counts as a look, too.
        arms: clusters of the pool by length, domain and embedding, which cost no forward pass.
        alpha: weight of an arm's uncertainty against its reward so far.
        discount: factor of a reward per later look; gains shrink as the cells fill.
        reward: coverage gained per `sample` looked at, as looks and n are counted; or per 1000 `tokens`, as a forward
            pass over a short sample costs less. The latter prefers short samples, of which a set of n covers less.
        outliers: weight of the outlier channels in the coverage, as in `activation_coverage`.
        rival_draws: draws of the rival, which is greedy on as many uniformly random looks. Each costs as many forward
            passes again, except for stored signatures.

    Optimises: the coverage f of `activation_coverage`. Each look draws an unseen sample of the arm with the largest
        UCB_m = theta x_m + alpha sqrt(x_m V^-1 x_m), theta the discounted ridge regression on the arms' features of
        the rewards f(A + s) - f(A), each divided by the running mean of all rewards, less 1: so an untried arm counts
        as average, and no arm is penalised because all rewards fall as A grows. A are the looks whose reward exceeded
        a running quantile. The n picks are then greedy on all samples looked at.
    Cost: `looks` (1 + rival_draws) forward passes, less what is stored; O(N) for the arms; O(looks (arms^3 + S K + W)).
    Source: linear submodular bandits (Yue, Guestrin 2011) with LinUCB (Li et al. 2010), discounted (Russac et
    al. 2019).
    """
    budget = LOOKS_PER_SAMPLE * n if looks is None else looks
    if budget < n:
        raise ValueError(
            f"strategy bandit_coverage: looks = {budget} is less than n = {n}; raise looks in params.yaml to at "
            f"least {n}, or set it to null for {LOOKS_PER_SAMPLE} n"
        )
    budget = min(budget, len(pool))
    clustering, drawing, rival = (np.random.default_rng(int(seed)) for seed in rng.integers(2**63, size=3))
    split, reference = reference_signatures(pool, "bandit_coverage")
    target = Target(reference, n, outliers)
    clusters = Arms.of(pool, arms, clustering)
    with Bar(total=budget * (1 + rival_draws), desc="looks", unit="sample") as bar:

        def look(row: int) -> ActivationCoverage:
            bar.update()
            return target.of(pool.signatures([row]))

        cost = np.ones(len(pool)) if reward == "sample" else pool.lengths / 1000
        bandit = Bandit(clusters.features, alpha, discount)
        seen = explore(clusters, cost, look, drawing, bandit, budget, n / budget)
        rivals = []
        for _ in range(rival_draws):
            drawn = np.sort(rival.permutation(len(pool))[:budget])
            rivals.append(target.greedy([look(row) for row in drawn.tolist()], n)[2])
    rows = np.array([one.row for one in seen], dtype=np.int64)
    picks, gains, ours = _greedy_on_looks(target, seen, rows, n)
    notes: dict[str, Any] = {
        "looks": budget,
        "forward_passes": int((~np.isin(rows, pool.signed)).sum()),
        "accepted": sum(one.accepted for one in seen),
        "reference": {"split": split, "samples": len(reference)},
        "arms": clusters.summary(pool, [one.arm for one in seen]),
        **compared(ours, rivals, budget, split),
    }
    if len(pool.signed) == len(pool):
        everything = target.greedy([target.of(pool.signatures(np.arange(len(pool))))], n)[2]
        notes["coverage"]["greedy_on_all"] = round(everything, 6)
    reasons = [
        {"look": pick + 1, **seen[pick].as_reason(), "gain": round(gain, 9)}
        for pick, gain in zip(picks, gains, strict=True)
    ]
    return Selection(rows[picks], reasons, notes=notes)


def _greedy_on_looks(
    target: Target, seen: list[Look], rows: NDArray[np.int64], n: int
) -> tuple[list[int], list[float], float]:
    """The looks that greedy picks, the gain of each, and f of the set; ties go to the lowest row."""
    ascending = np.argsort(rows)
    chosen, gains, value = target.greedy([seen[position].coverage for position in ascending], n)
    return [int(ascending[position]) for position in chosen], gains, value


class Target:
    """The coverage f of the reference, for samples that come one at a time."""

    def __init__(self, reference: Signatures, n: int, outliers: float) -> None:
        self.one = ActivationCoverage.of(reference.take([0]), reference, n, outliers)
        self.thresholds = ladder(reference.absmax, reference.sites)[0]
        self.sites = reference.sites

    def of(self, signatures: Signatures) -> ActivationCoverage:
        """`ActivationCoverage.of` these signatures, reusing what was computed from the reference."""
        if signatures.sites != self.sites:
            raise ValueError("signatures of pool and reference differ in their sites; run sample_features again")
        level = np.zeros(signatures.absmax.shape, dtype=np.uint8)
        for threshold in self.thresholds:
            level += signatures.absmax >= threshold
        amount = signatures.cells.reshape(len(signatures), -1).astype(np.float64)
        return replace(self.one, amount=amount, level=level)

    def greedy(self, parts: list[ActivationCoverage], n: int) -> tuple[NDArray[np.int64], list[float], float]:
        """Lazy greedy over the samples of all `parts` together: positions, gains, and f of the set."""
        whole = replace(
            self.one,
            amount=np.concatenate([part.amount for part in parts]),
            level=np.concatenate([part.level for part in parts]),
        )
        chosen, gains = lazy_greedy(whole, np.arange(len(whole.amount)), n)
        return chosen, gains, float(whole.reached(chosen)[0])


@dataclass(frozen=True, eq=False)
class Arms:
    """Clusters of the pool."""

    labels: NDArray[np.int64]
    """Arm of each row, (N,)."""
    features: NDArray[np.float64]
    """x_m: a constant, the mean cheap features of the arm, and which arm it is, (M, 1 + F + M)."""

    @staticmethod
    def of(pool: Pool, arms: int, rng: np.random.Generator) -> Arms:
        """At most `arms` k-means clusters by log length, domain and embedding, none empty."""
        from plumbline.calibration_set.methods.kmeans import InMemory, kmeans

        x, _ = cheap_features(pool, np.arange(len(pool)), EMBEDDING_DIMENSIONS)
        clusters = kmeans(InMemory.of(x), min(arms, len(pool)), rng).labels
        labels = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
        count = int(labels.max()) + 1
        means = np.stack([x[labels == arm].mean(0) for arm in range(count)])
        return Arms(labels, np.concatenate([np.ones((count, 1)), means, np.eye(count)], 1))

    def summary(self, pool: Pool, pulled: list[int]) -> list[dict[str, Any]]:
        """For the manifest: the samples of each arm, and the number of looks at it."""
        domains, lengths = np.array(pool.domains), pool.lengths
        looks = np.bincount(pulled, minlength=len(self.features))
        rows = []
        for arm in range(len(self.features)):
            inside = self.labels == arm
            names, counts = np.unique(domains[inside], return_counts=True)
            rows.append(
                {
                    "samples": int(inside.sum()),
                    "median_tokens": int(np.median(lengths[inside])),
                    "domains": dict(zip(names.tolist(), counts.tolist(), strict=True)),
                    "looks": int(looks[arm]),
                }
            )
        return rows


class Bandit:
    """Discounted LinUCB, V = ridge I + sum_i discount^(t-i) x_i x_i^T, theta = V^-1 sum_i discount^(t-i) r_i x_i."""

    def __init__(self, features: NDArray[np.float64], alpha: float, discount: float, ridge: float = 1.0) -> None:
        self.x, self.alpha, self.discount, self.ridge = features, alpha, discount, ridge
        self.xx = np.zeros((features.shape[1], features.shape[1]))
        self.xr = np.zeros(features.shape[1])

    def bounds(self) -> NDArray[np.float64]:
        """UCB of every arm, (M,), rounded so that the last bits of the solver change no decision."""
        V = self.xx + self.ridge * np.eye(len(self.xx))
        theta = np.linalg.solve(V, self.xr)
        spread = (self.x * np.linalg.solve(V, self.x.T).T).sum(1)
        return np.round(self.x @ theta + self.alpha * np.sqrt(np.maximum(spread, 0)), 9)

    def update(self, arm: int, reward: float) -> None:
        """Learn the reward of a look at `arm`."""
        x = self.x[arm]
        self.xx = self.discount * self.xx + np.outer(x, x)
        self.xr = self.discount * self.xr + reward * x


@dataclass(frozen=True, eq=False)
class Look:
    """A sample that was looked at."""

    row: int
    arm: int
    reward: float
    """ActivationCoverage gained when it was looked at, per sample or per 1000 tokens."""
    accepted: bool
    coverage: ActivationCoverage
    """Of this sample alone."""

    def as_reason(self) -> dict[str, Any]:
        """The look for the reason of a sample."""
        return {"arm": self.arm, "reward": round(self.reward, 9), "accepted": self.accepted}


def explore(
    arms: Arms,
    cost: NDArray[np.float64],
    look: Callable[[int], ActivationCoverage],
    rng: np.random.Generator,
    bandit: Bandit,
    budget: int,
    share: float,
) -> list[Look]:
    """Look at `budget` samples, each of the arm with the largest UCB.

    Args:
        cost: divisor of the reward per row, (N,).
        look: returns the coverage of one row alone, at a forward pass.
        share: of the looks to accept; the running quantile is 1 - share.
    """
    unseen = [rng.permutation(np.flatnonzero(arms.labels == arm)).tolist() for arm in range(len(arms.features))]
    seen: list[Look] = []
    recent: deque[float] = deque(maxlen=RECENT)
    total = weight = 0.0
    have = now = None
    while len(seen) < budget:
        bounds = np.where([bool(rows) for rows in unseen], bandit.bounds(), -np.inf)
        arm = int(np.argmax(bounds))
        row = unseen[arm].pop()
        coverage = look(row)
        if have is not None and now is not None:
            coverage.have, coverage.now = have, now
        reward = float(coverage.gains(np.array([0]))[0]) / float(cost[row])
        accepted = not recent or reward > float(np.quantile(list(recent), 1 - share))
        if accepted:
            coverage.add(0)
        have, now = coverage.have, coverage.now
        recent.append(reward)
        total, weight = bandit.discount * total + reward, bandit.discount * weight + 1
        bandit.update(arm, reward * weight / total - 1 if total > 0 else 0.0)
        seen.append(Look(row, arm, reward, accepted, coverage))
    return seen


def compared(ours: float, rivals: list[float], looks: int, split: str) -> dict[str, Any]:
    """Compare the coverage with that of greedy on random looks."""
    theirs = float(np.mean(rivals))
    difference = round(ours - theirs, 6)
    won = "the bandit won" if difference > 0 else "random looks won" if difference < 0 else "neither won"
    draws = f"mean of {len(rivals)} draws" if len(rivals) > 1 else "one draw"
    return {
        "coverage": {
            "bandit": round(ours, 6),
            "random_looks": [round(value, 6) for value in rivals],
            "difference": difference,
        },
        "verdict": f"Greedy on the bandit's {looks} looks covers {ours:.4f} of the activation space of the {split} "
        f"split, on as many random looks {theirs:.4f} ({draws}): {won}"
        + (f" by {abs(difference):.4f}." if difference else "."),
    }
