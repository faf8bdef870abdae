"""REINFORCE on the true quantized KL: a policy over samples learns which sets quantize the model well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from assets.calibration_set.strategies.base import Pool, Selection
from assets.calibration_set.strategies.cheap_features import cheap_features
from assets.calibration_set.strategies.plackett_luce import entropy
from assets.calibration_set.strategies.set_search import (
    Search,
    Settings,
    cross_entropy,
    random_search,
    reinforce,
    swap_search,
)

if TYPE_CHECKING:
    from assets.calibration_set.strategies.quantized_kl import QuantizedKL, Texts

LEAST_CANDIDATES = 64
DIGITS = 9
"""Decimals of a reward (nats per token) that decisions are made on."""


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
    rival: Literal["swap", "cem"] = "swap",
    tuning_tokens: Annotated[int, Field(ge=16)] = 8192,
    blocks: Annotated[int, Field(ge=1)] | None = None,
    bits: Annotated[int, Field(ge=2, le=8)] = 3,
    group_size: Annotated[int, Field(ge=1)] | None = 128,
    embedding_dimensions: Annotated[int, Field(ge=0)] = 8,
    memory_gb: Annotated[float, Field(gt=0)] = 4.0,
) -> Selection:
    """Learn by trial which samples make a set from which the model quantizes well, and return the best set found.

    Options:
        candidates: how many samples, drawn uniformly from the pool, the policy chooses among; each costs a forward pass
            and the memory of its Hessians. null: 64, or twice n where that is more.
        steps, sets: updates of the policy, and sets tried per update. steps * sets models are quantized, as many again
            for the rival, and as many for random sets.
        learning_rate, entropy_bonus: size of an update, in units of the deviation of the rewards of random sets; and
            the reward for staying undecided.
        rival: the search to compare with: `swap` (local search) or `cem` (cross-entropy method).
        tuning_tokens: of the tuning split, half of them to reward sets, half (of other documents) to check them.
        blocks: how many decoder layers are quantized, spread over the depth; null: all.
        bits, group_size: the grid of GPTQ; group_size null: one scale per channel.
        embedding_dimensions: how many leading directions of the embedding the policy sees; 0: length and domain alone.
        memory_gb: for the candidates' Hessians; refused where they need more.

    Optimises: -KL(base || quantized) on the rewarding half of the tuning tokens. What is rewarded can be overfitted, so
        the two finalists (the best set tried, the mode of the final policy) are told apart by the other half, and all
        KLs that the notes compare are of that half. The policy's set is returned also where the rival's is better; the
        notes say which was.
    Cost: a forward pass per candidate; 3 (steps * sets) times GPTQ of the blocks and a forward pass over half of
        tuning_tokens. On one thread, for the same bytes everywhere: meant for small models.
    Source: Williams 1992; Gumbel-top-k and the leave-one-out baseline: Kool, van Hoof, Welling 2019. No earlier use
    for calibration sets is known.
    """
    from assets.calibration_set.strategies.quantized_kl import QuantizedKL, two_halves

    if n == len(pool):
        return Selection(np.arange(n), [{} for _ in range(n)], notes={"everything": "n is the size of the pool"})
    count = min(len(pool), max(LEAST_CANDIDATES, 2 * n) if candidates is None else candidates)
    if count <= n:
        raise ValueError(
            f"strategy reinforce: candidates = {count} leaves no choice of n = {n}; raise it in params.yaml"
        )
    among, texts, policy, other, anyone = (np.random.default_rng(int(s)) for s in rng.integers(2**63, size=5))
    rows = np.sort(among.permutation(len(pool))[:count])
    model = QuantizedKL(
        pool.load_model(),
        list(zip(pool.names(rows), pool.input_ids(rows), strict=True)),
        blocks=blocks,
        bits=bits,
        group_size=group_size,
        memory_gb=memory_gb,
    )
    rewarding, guarding = (model.texts(half) for half in two_halves(pool.tuning, tuning_tokens // 2, texts))
    x, names = cheap_features(pool, rows, embedding_dimensions)
    budget = steps * sets
    kl, check = KLs(model, rewarding), KLs(model, guarding)

    with tqdm(total=3 * budget, desc="sets", unit="set", disable=None) as bar:

        def reward(items: tuple[int, ...]) -> float:
            bar.update()
            return -kl(items)

        def reward_and_check(items: tuple[int, ...]) -> float:
            found = reward(items)
            check(items)  # while the model is quantized from it: the null of every KL that is compared
            return found

        uniform = random_search(count, n, reward_and_check, anyone, budget)
        search = swap_search if rival == "swap" else cross_entropy
        theirs = search(count, n, reward, other, budget)
        scale = float(np.std([trial.reward for trial in uniform.trials])) or 1.0
        settings = Settings(sets, steps, learning_rate, entropy_bonus, scale)
        ours, theta = reinforce(x, n, reward, policy, np.zeros(x.shape[1]), settings)

    logits = x @ theta
    pick = min(ours.finalists, key=check)
    order = sorted(pick, key=lambda item: (-round(float(logits[item]), DIGITS), item))
    notes = {
        "candidates": count,
        "evaluations": budget,
        "linears": len(model.group_size),
        "tokens": {"rewarding": rewarding.tokens, "checking": guarding.tokens},
        "policy": {
            "weights": {name: round(float(weight), 4) for name, weight in zip(names, theta, strict=True)},
            "entropy": [round(entropy(x, at)[0], 4) for at in (np.zeros_like(theta), theta)],
            "mean_kl_per_step": [
                round(-float(np.mean([t.reward for t in ours.trials[at : at + sets]])), 6)
                for at in range(0, budget, sets)
            ],
            "pick": "best set tried" if pick == ours.finalists[0] else "mode of the final policy",
        },
        **compared(ours, theirs, uniform, kl, check, rival),
    }
    reasons = [_reason(item, logits, ours, rows) for item in order]
    return Selection(rows[order], reasons, notes=notes)


class KLs:
    """KL of a set on some texts in nats per token, rounded, each measured once."""

    def __init__(self, model: QuantizedKL, texts: Texts) -> None:
        self._model, self._texts = model, texts
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, items: tuple[int, ...]) -> float:
        """The KL of the set of these items (ascending)."""
        if items not in self._known:
            self._known[items] = round(self._model(items, self._texts), DIGITS)
        return self._known[items]


def compared(
    ours: Search, theirs: Search, uniform: Search, kl: Callable[..., float], check: Callable[..., float], rival: str
) -> dict[str, Any]:
    """The policy's set beside the rival's and random ones, each chosen from its own finalists by the checking half.

    Returns:
        KLs on the half that rewarded and on the half that checks, and a sentence on who won.
    """
    names = {"swap": "swap search", "cem": "the cross-entropy method"}
    sets = {
        name: min(search.finalists, key=check)
        for name, search in (("reinforce", ours), (rival, theirs), ("best_random", uniform))
    }
    null = sorted(check(trial.items) for trial in uniform.trials)
    found = {
        half: {
            **{name: round(measure(items), 6) for name, items in sets.items()},
            "median_random": round(float(np.median([measure(trial.items) for trial in uniform.trials])), 6),
        }
        for half, measure in (("rewarding", kl), ("checking", check))
    }
    pick, other = check(sets["reinforce"]), check(sets[rival])
    verb = "is lower than" if pick < other else "is higher than" if pick > other else "equals"
    worse = sum(value > pick for value in null)
    sentence = (
        f"On tuning text that rewarded no set, REINFORCE's KL of {pick:.5f} {verb} the {other:.5f} of {names[rival]} "
        f"with as many evaluations, and lower than that of {worse} of {len(null)} random sets (best {null[0]:.5f})."
    )
    return {"kl": found, "random_sets_worse": worse, "verdict": sentence}


def _reason(item: int, logits: NDArray[np.float64], ours: Search, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Why a sample is in the set: what the policy came to think of it, and how sets with and without it did."""
    inside = [-trial.reward for trial in ours.trials if item in trial.items]
    outside = [-trial.reward for trial in ours.trials if item not in trial.items]
    return {
        "logit": round(float(logits[item]), 4),
        "in_sets": len(inside),
        "kl_with": round(float(np.mean(inside)), 6) if inside else None,
        "kl_without": round(float(np.mean(outside)), 6) if outside else None,
    }
