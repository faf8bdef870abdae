"""REINFORCE on the true quantized KL: a policy over samples learns which sets quantize the model well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.cheap_features import cheap_features, principal_directions, standardised
from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.plackett_luce import entropy
from plumbline.calibration_set.methods.set_search import (
    Search,
    Settings,
    cross_entropy,
    random_search,
    reinforce,
    swap_search,
)
from plumbline.calibration_set.methods.signed import reference_signatures
from plumbline.calibration_set.strategies.activation_coverage import ActivationCoverage
from plumbline.calibration_set.strategies.base import Pool, Selection
from plumbline.progress import Bar

if TYPE_CHECKING:
    from plumbline.calibration_set.methods.quantized_kl import QuantizedKL, Texts
    from plumbline.sample_features.signatures import Signatures

LEAST_CANDIDATES = 64
DIGITS = 9
"""Decimals of a reward (nats per token) on which decisions are made."""
RIDGE = 0.1
WEAK = 0.3
"""Rank correlation below which one half of the tuning text predicts little of the other."""


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    candidates: Annotated[int, Field(ge=2)] | None = None,
    steps: Annotated[int, Field(ge=1)] = 10,
    sets: Annotated[int, Field(ge=2)] = 4,
    learning_rate: Annotated[float, Field(gt=0)] = 0.05,
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.01,
    start: Literal["uniform", "greedy"] = "uniform",
    beta: Annotated[float, Field(ge=0)] = 0.0,
    rival: Literal["swap", "cem"] = "swap",
    tuning_tokens: Annotated[int, Field(ge=16)] = 8192,
    blocks: Annotated[int, Field(ge=1)] | None = None,
    bits: Annotated[int, Field(ge=2, le=8)] = 3,
    group_size: Annotated[int, Field(ge=1)] | None = 128,
    embedding_dimensions: Annotated[int, Field(ge=0)] = 8,
    activation_dimensions: Annotated[int, Field(ge=0)] = 0,
    memory_gb: Annotated[float, Field(gt=0)] = 4.0,
) -> Selection:
    """Learn by trial which samples make a set from which the model quantizes well, and return the best set.

    Options:
        candidates: number of samples, drawn uniformly from the pool, that the policy chooses among; each costs a
            forward pass and the memory of its Hessians. null: 64, or 2 n if that is more.
        steps, sets: updates of the policy, and sets tried per update. steps * sets models are quantized, as many again
            for the rival, and as many for random sets.
        learning_rate, entropy_bonus: size of an update, in standard deviations of the rewards of random sets; and the
            weight of the policy's entropy in the reward.
        start: the initial policy: `uniform`, or the linear one nearest to the greedy set of `activation_coverage`.
        beta: weight of that coverage f(A), from 0 to 1, beside the KL (nats per token).
        rival: the search to compare with: `swap` (local search) or `cem` (cross-entropy method).
        tuning_tokens: tokens of the tuning split: half of them reward sets, half (of other documents) check them.
        blocks: number of decoder layers to quantize, spread over the depth; null: all.
        bits, group_size: the grid of GPTQ; group_size null: one scale per channel.
        embedding_dimensions, activation_dimensions: leading directions of the embedding, and of the pooled
            activations, that are features of the policy beside length and domain.
        memory_gb: limit for the candidates' Hessians; the choice fails if they need more.

    Optimises: beta f(A) - KL(base || quantized) on the rewarding half of the tuning tokens. A search can overfit the
        reward, so the other half decides between the two finalists (the best set tried, the mode of the final policy),
        and the verdict compares KLs on that half. The policy's set is returned even if the rival's is better; the
        notes say which is better.
    Cost: a forward pass per candidate (two if `start`, `beta` or `activation_dimensions` needs a signature that is not
        stored); 3 (steps * sets) times GPTQ of the blocks and a forward pass over half of tuning_tokens. It runs on one
        thread, for the same bytes everywhere, and is meant for small models.
    Source: Williams 1992; Gumbel-top-k and the leave-one-out baseline: Kool, van Hoof, Welling 2019. No earlier use
    for calibration sets is known.
    """
    from plumbline.calibration_set.methods.quantized_kl import QuantizedKL, two_halves

    if n == len(pool):
        return Selection(np.arange(n), [{} for _ in range(n)], notes={"everything": "n is the size of the pool"})
    count = min(len(pool), max(LEAST_CANDIDATES, 2 * n) if candidates is None else candidates)
    if count <= n:
        raise ValueError(
            f"strategy reinforce: candidates = {count} leaves no choice of n = {n}; raise it in params.yaml"
        )
    among, texts, for_policy, for_rival, for_uniform = (
        np.random.default_rng(int(seed)) for seed in rng.integers(2**63, size=5)
    )
    rows = np.sort(among.permutation(len(pool))[:count])
    model = QuantizedKL(
        pool.load_model(),
        list(zip(pool.names(rows), pool.input_ids(rows), strict=True)),
        blocks=blocks,
        bits=bits,
        group_size=group_size,
        memory_gb=memory_gb,
    )
    halves = two_halves(pool.tuning, tuning_tokens // 2, texts)
    coverage = None
    policy = Policy.uniform(*cheap_features(pool, rows, embedding_dimensions))
    if start == "greedy" or beta or activation_dimensions:
        signatures = pool.signatures(rows)
        coverage = ActivationCoverage.of(signatures, reference_signatures(pool, "reinforce")[1], n)
        policy = policy.with_activations(signatures, activation_dimensions)
        if start == "greedy":
            policy = policy.towards(lazy_greedy(coverage, np.arange(count), n)[0])
    budget = steps * sets
    rival_search = swap_search if rival == "swap" else cross_entropy
    with Bar(total=3 * budget, desc="sets", unit="set") as bar:
        judge = Judge(model, model.texts(halves[0]), model.texts(halves[1]), coverage, beta, bar.update)
        uniform = random_search(count, n, judge.reward_and_check, for_uniform, budget)
        theirs = rival_search(count, n, judge.reward, for_rival, budget)
        scale = float(np.std([trial.reward for trial in uniform.trials])) or 1.0
        settings = Settings(sets, steps, learning_rate, entropy_bonus, scale)
        ours, learned = reinforce(policy.x, n, judge.reward, for_policy, policy.theta, settings)

    pick = max(ours.finalists, key=judge.check)
    kls = [judge.kl_rewarding(trial.items) for trial in ours.trials]
    notes = {
        "candidates": count,
        "evaluations": budget,
        "linears": len(model.group_size),
        "tokens": {"rewarding": judge.rewarding.tokens, "checking": judge.checking.tokens},
        "policy": {
            **policy.learning(learned),
            "mean_kl_per_step": [round(float(np.mean(kls[at : at + sets])), 6) for at in range(0, budget, sets)],
            "pick": "best set tried" if pick == ours.finalists[0] else "mode of the final policy",
        },
        **compared(judge, ours, theirs, uniform, rival),
    }
    if beta and coverage is not None:
        notes["coverage"] = round(float(coverage.reached(np.array(pick))[0]), 6)
    logits = policy.x @ learned
    order = sorted(pick, key=lambda item: (-round(float(logits[item]), DIGITS), item))
    return Selection(rows[order], [_reason(item, logits, ours, kls) for item in order], notes=notes)


@dataclass(frozen=True, eq=False)
class Policy:
    """A linear policy over candidates, as it is before it learns."""

    x: NDArray[np.float64]
    """Standardised features, (candidates, F)."""
    names: tuple[str, ...]
    """Of the features."""
    theta: NDArray[np.float64]
    """The weights to begin with, (F,)."""

    @classmethod
    def uniform(cls, x: NDArray[np.float64], names: tuple[str, ...]) -> Policy:
        """The policy that prefers no candidate."""
        return cls(x, names, np.zeros(x.shape[1]))

    def with_activations(self, signatures: Signatures, dimensions: int) -> Policy:
        """The uniform policy that sees the leading directions of the pooled activations, too."""
        if not dimensions:
            return self
        pooled = signatures.pooled.astype(np.float64)
        mean, directions = principal_directions(pooled, dimensions)
        more = standardised((pooled - mean) @ directions)
        names = (*self.names, *(f"activations {number}" for number in range(more.shape[1])))
        return Policy.uniform(np.concatenate([self.x, more], 1), names)

    def towards(self, chosen: NDArray[np.int64]) -> Policy:
        """The policy whose logits separate `chosen` from the rest best (ridge regression), with deviation 1."""
        inside = np.zeros(len(self.x))
        inside[chosen] = 1
        ridge = len(self.x) * RIDGE * np.eye(self.x.shape[1])
        theta = np.linalg.solve(self.x.T @ self.x + ridge, self.x.T @ (inside - inside.mean()))
        deviation = float((self.x @ theta).std())
        return replace(self, theta=np.round(theta / deviation, 6) if deviation > 0 else np.zeros(len(theta)))

    def learning(self, learned: NDArray[np.float64]) -> dict[str, Any]:
        """For the notes: the learned weights, and the entropy before and after."""
        return {
            "weights": {name: round(float(weight), 4) for name, weight in zip(self.names, learned, strict=True)},
            "entropy": [round(entropy(self.x, theta)[0], 4) for theta in (self.theta, learned)],
        }


class Judge:
    """The reward of a set: beta f - KL, with the KL on the rewarding or on the checking half of the tuning text.

    KLs are rounded, so that decisions do not depend on the last bits, and each is measured once.
    """

    def __init__(
        self,
        model: QuantizedKL,
        rewarding: Texts,
        checking: Texts,
        coverage: ActivationCoverage | None,
        beta: float,
        progress: Callable[[], object],
    ) -> None:
        self.rewarding, self.checking = rewarding, checking
        self._model, self._coverage, self._beta, self._progress = model, coverage, beta, progress
        self._kls: dict[tuple[bool, tuple[int, ...]], float] = {}

    def reward(self, items: tuple[int, ...]) -> float:
        """The reward that a search sees."""
        self._progress()
        return self._bonus(items) - self.kl_rewarding(items)

    def check(self, items: tuple[int, ...]) -> float:
        """The reward on the checking half, which decides between finalists and no search sees."""
        return self._bonus(items) - self.kl_checking(items)

    def reward_and_check(self, items: tuple[int, ...]) -> float:
        """`reward`, after measuring the checking KL while the model is quantized from this set."""
        self.kl_checking(items)
        return self.reward(items)

    def kl_rewarding(self, items: tuple[int, ...]) -> float:
        """Nats per token."""
        return self._kl(items, False)

    def kl_checking(self, items: tuple[int, ...]) -> float:
        """Nats per token."""
        return self._kl(items, True)

    @property
    def halves(self) -> dict[str, Callable[[tuple[int, ...]], float]]:
        """Both KLs by the name of the half."""
        return {"rewarding": self.kl_rewarding, "checking": self.kl_checking}

    def _kl(self, items: tuple[int, ...], checking: bool) -> float:
        if (checking, items) not in self._kls:
            texts = self.checking if checking else self.rewarding
            self._kls[checking, items] = round(self._model(items, texts), DIGITS)
        return self._kls[checking, items]

    def _bonus(self, items: tuple[int, ...]) -> float:
        if not self._beta or self._coverage is None:
            return 0.0
        return round(self._beta * float(self._coverage.reached(np.array(items))[0]), DIGITS)


def compared(judge: Judge, ours: Search, theirs: Search, uniform: Search, rival: str) -> dict[str, Any]:
    """Compare the policy's set with the rival's and random ones; the checking half decides between finalists.

    Returns:
        KLs on both halves, the rank correlation of the halves over random sets, and a verdict in words.
    """
    from scipy.stats import spearmanr

    sets = {
        name: max(search.finalists, key=judge.check)
        for name, search in (("reinforce", ours), (rival, theirs), ("best_random", uniform))
    }
    tried = [trial.items for trial in uniform.trials]
    null = {half: [measure(items) for items in tried] for half, measure in judge.halves.items()}
    kl = {
        half: {
            **{name: round(measure(items), 6) for name, items in sets.items()},
            "median_random": round(float(np.median(null[half])), 6),
        }
        for half, measure in judge.halves.items()
    }
    alike = all(len(set(values)) > 1 for values in null.values())
    correlation = round(float(spearmanr(null["rewarding"], null["checking"]).statistic), 3) if alike else None
    pick, other = kl["checking"]["reinforce"], kl["checking"][rival]
    verb = "is lower than" if pick < other else "is higher than" if pick > other else "equals"
    name = {"swap": "swap search", "cem": "the cross-entropy method"}[rival]
    worse = sum(value > judge.kl_checking(sets["reinforce"]) for value in null["checking"])
    verdict = (
        f"On tuning text that rewarded no set, REINFORCE's KL of {pick:.5f} {verb} the {other:.5f} of {name} with as "
        f"many evaluations, and lower than that of {worse} of {len(tried)} random sets (median "
        f"{kl['checking']['median_random']:.5f}, lowest {min(null['checking']):.5f})."
    )
    if correlation is None or correlation < WEAK:
        verdict += (
            f" The two halves of the tuning text rank random sets hardly alike (rank correlation {correlation}), so "
            "most of what a search gains on one is lost on the other: raise tuning_tokens, or expect little from it."
        )
    return {"kl": kl, "random_sets_worse": worse, "rank_correlation_of_halves": correlation, "verdict": verdict}


def _reason(item: int, logits: NDArray[np.float64], ours: Search, kls: list[float]) -> dict[str, Any]:
    """The reason of a sample: its logit, and the mean KL of the sets tried with and without it."""
    inside = [kl for trial, kl in zip(ours.trials, kls, strict=True) if item in trial.items]
    outside = [kl for trial, kl in zip(ours.trials, kls, strict=True) if item not in trial.items]
    return {
        "logit": round(float(logits[item]), 4),
        "in_sets": len(inside),
        "kl_with": round(float(np.mean(inside)), 6) if inside else None,
        "kl_without": round(float(np.mean(outside)), 6) if outside else None,
    }
