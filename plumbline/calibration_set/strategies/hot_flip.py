"""Sensitivity to rounding: the samples on which the rounding decisions of the model's weights matter most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.signed import digits
from plumbline.calibration_set.strategies.base import Pool, Samples, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from plumbline.calibration_set.methods.flip_scores import FlipScores, Path, RoundedLayer

HELD = 4
"""Samples of the reference on which real flips are made."""
WATCHED = 1 << 16
"""Weights, spread evenly over the model, whose sign of δ is counted over the samples."""
SHOWN = 10
"""Number of groups and modules listed in the notes."""
RANDOM_SETS = 20
"""Random sets of the candidates that the objective is compared with."""
UNVALIDATED = (
    "not validated: real flips do not rank as predicted, and accept_unvalidated is true; read this set as one chosen "
    "by an unproven score"
)


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    bits: Annotated[int, Field(ge=2, le=8)] = 4,
    group_size: Annotated[int, Field(ge=1)] | None = 128,
    rows: Annotated[int, Field(ge=1)] = 64,
    weighting: Literal["token", "sequence"] = "token",
    candidates: Annotated[int, Field(ge=1)] = 256,
    reference: Annotated[int, Field(ge=1)] = 64,
    max_tokens: Annotated[int, Field(ge=2)] = 512,
    real_flips: Annotated[int, Field(ge=8)] = 64,
    weights_per_flip: Annotated[int, Field(ge=1)] = 8,
    min_rank_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.5,
    accept_unvalidated: bool = False,
) -> Selection:
    """Choose the samples whose loss is most sensitive, per group of weights, to the rounding of the weights.

    The model is rounded to nearest, Ŵ, and one backward pass per sample s at Ŵ scores each weight's flip to the
    neighbour on the grid, δ_ij(s) (see `flip_scores`). Over a group g (`rows` output channels, one input group)
    φ_g(s) = sqrt(Σ_ij δ_ij(s)²), and with E the mean over a reference that stands for production, lazy greedy
    maximises

        f(A) = Σ_g ω_g sqrt(Σ_{s in A} φ_g(s) / E φ_g),   ω_g = E φ_g.

    Before scoring, `real_flips` random flips are made on samples of the reference, and their true change of the loss is
    ranked against the predicted one (Spearman). A flip moves `weights_per_flip` weights of one group, not the whole
    group, because a first-order term predicts small steps only: in a flip of all 8,192 weights of a group, each moves
    to the worse neighbour, and the second-order loss outweighs the rest. Measured on two small models at 3 and 4 bits,
    48 flips on four samples: rank correlation 0.98 or more for flips of 1 and 8 weights, 0.79 to 0.98 for 64, 0.50 to
    0.93 for 512, and -0.04 to 0.22 for whole groups.

    Options:
        bits, group_size: the grid of the rounding; use those of the scheme. If `group_size` does not divide a layer's
            width, the width's largest divisor below it is used, as in the quantized model; null: per channel.
        rows: output channels of a group.
        weighting: `token`: φ of the sum over a sample's tokens, as every token enters the statistics of a quantizer; it
            prefers long samples. `sequence`: φ of their mean, which varies more over few tokens, so it prefers short
            samples (of the bundled corpus it took samples of 100 tokens where 1,024 is usual). The notes compare
            lengths.
        candidates: number of samples drawn uniformly from the pool and scored; the set is chosen among them.
        reference: number of samples of the reference (production, or the tuning split if there is none) behind E.
        max_tokens: number of leading tokens of a sample that are scored, at most the model's context; the set contains
            the whole sample.
        real_flips, weights_per_flip: the test above.
        min_rank_correlation: below it the test is repeated with the gradient's mean at four points between W and Ŵ
            (path integral, PQI, arXiv 2503.01901; on both small models it ranked flips worse); if that is below it,
            too, the choice fails.
        accept_unvalidated: use one backward pass at Ŵ although both tests failed; the notes say so.

    Optimises: f, monotone and submodular, to at least 1 - 1/e of the best set of n candidates.
    Cost: for each candidate, reference sample and sample with real flips two forward passes and one backward pass
    (four times as much with the path); `real_flips` forward passes for each of four samples. Memory: a float32 copy of
    the model, the gradient of one layer (with the path: of the model), and candidates x groups numbers.
    Same inputs give the same bytes on one machine: passes are in float32, one sample at a time. Another number of
    threads may change the last bits of φ, and so the order of two samples whose gains agree to six digits.
    Source: our own, after HotFlip (Ebrahimi et al., ACL 2018) for the score and AdaRound (2004.10568) for the question.

    Raises:
        ValueError: fewer candidates than n; the predictions rank below `min_rank_correlation`; no Linear to round.
    """
    from plumbline.calibration_set.methods.flip_scores import ROUNDED, FlipScores
    from plumbline.calibration_set.methods.flip_test import FlipTest, random_flips
    from plumbline.progress import Bar

    scored_rows = np.sort(rng.permutation(len(pool))[:candidates])
    if len(scored_rows) < n:
        raise ValueError(
            f"hot_flip: asked for n = {n} of {candidates} candidates; set `candidates` in params.yaml to several "
            f"times n (each costs about four forward passes)"
        )
    references, split = _reference(pool)
    order = rng.permutation(len(references))
    measured = order[:reference]
    held = np.resize(order[reference:] if len(order) > reference else order, min(HELD, len(order)))

    model = pool.load_model()
    scores = FlipScores(model, bits, group_size, rows)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = min(max_tokens, int(longest or max_tokens))
    flips = random_flips(scores, real_flips, weights_per_flip, rng)
    test = FlipTest(scores, flips, [ids[:tokens] for ids in references.input_ids(held)])
    validation = test.validate(min_rank_correlation)
    if not (validation.passed or accept_unvalidated):
        raise ValueError(validation.refusal(test))

    signs = SignCounts(scores)
    with Bar(total=len(measured) + len(scored_rows), unit="sample", desc="hot flips") as bar:
        meter = _Meter(scores, validation.path, tokens, weighting, bar.update)
        production = meter.measure(references, measured, signs)
        sensitivities = meter.measure(pool, scored_rows)

    objective = SensitivityCoverage.of(sensitivities.weighted, production.weighted)
    progress = CoverageSoFar(objective)
    picks, gains = lazy_greedy(progress, np.arange(len(scored_rows)), n)
    random_sets = [rng.permutation(len(scored_rows))[:n] for _ in range(RANDOM_SETS)]
    group_name = _group_names(scores.layers)
    lengths = pool.lengths
    notes: dict[str, Any] = {
        "candidates": len(scored_rows),
        "reference": {"split": split, "samples": len(measured)},
        "grid": _grid_notes(scores, bits),
        "validation": validation.notes(test, weights_per_flip),
        "gradient": "at Ŵ" if validation.path is ROUNDED else "mean of four points between W and Ŵ",
        "objective": _objective_notes(objective, picks, random_sets),
        "median_tokens": _median_tokens(lengths[scored_rows], picks),
        "tokens_looked_at": int(np.minimum(lengths[scored_rows], tokens).sum()),
        "sensitivity": _sensitivity(scores.layers, production.phi, group_name),
        "instability": signs.summary(len(measured)),
        "cost": {"forward_passes": scores.forwards, "backward_passes": scores.backwards},
    }
    if not validation.passed:
        notes["warning"] = UNVALIDATED
    most = [group_name(int(objective.groups[group])) if len(objective.groups) else None for group in progress.most]
    reasons = [
        {"gain": digits(gain / objective.scale), "kl": digits(sensitivities.losses[pick]), "raises_most": name}
        for pick, gain, name in zip(picks, gains, most, strict=True)
    ]
    return Selection(scored_rows[picks], reasons, notes=notes)


@dataclass(frozen=True, eq=False)
class SensitivityCoverage:
    """f over m candidates: f(A) = Σ_g ω_g sqrt(Σ_{s in A} r_g(s)) with r = φ / E φ."""

    ratios: NDArray[np.float64]
    """r, (m, groups with ω > 0)."""
    weights: NDArray[np.float64]
    """ω, (groups with ω > 0,)."""
    groups: NDArray[np.int64]
    """Their numbers among all groups. Groups to which no sample of the reference is sensitive are left out."""

    @classmethod
    def of(cls, phi: NDArray[np.floating], reference: NDArray[np.floating]) -> SensitivityCoverage:
        """Candidates' φ (m, groups) against the reference's (R, groups)."""
        mean = reference.astype(np.float64).mean(0)
        groups = np.flatnonzero(mean > 0)
        return cls(phi[:, groups] / mean[groups], mean[groups], groups)

    @property
    def scale(self) -> float:
        """Σ ω, the unit in which gains are reported; 1 where it is 0."""
        return float(self.weights.sum()) or 1.0

    def value(self, rows: NDArray[np.int64]) -> float:
        """f of a set."""
        return float((self.weights * np.sqrt(self.ratios[rows].sum(0))).sum())


@dataclass
class CoverageSoFar:
    """`SensitivityCoverage` of the set built so far: an `Objective` of `lazy_greedy`."""

    objective: SensitivityCoverage
    covered: NDArray[np.float64] = field(init=False)
    most: list[int] = field(default_factory=list)
    """Per row added: the place in `SensitivityCoverage.groups` of the group whose term rose most."""

    def __post_init__(self) -> None:
        self.covered = np.zeros(len(self.objective.weights))

    def _raises(self, row: int) -> NDArray[np.float64]:
        grown = np.sqrt(self.covered + self.objective.ratios[row]) - np.sqrt(self.covered)
        raised: NDArray[np.float64] = self.objective.weights * grown
        return raised

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """f(A + row) - f(A)."""
        return np.array([self._raises(int(row)).sum() for row in rows])

    def add(self, row: int) -> None:
        """A becomes A + row."""
        self.most.append(int(np.argmax(self._raises(row))) if len(self.covered) else 0)
        self.covered += self.objective.ratios[row]


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """Measured sensitivities of some samples."""

    phi: NDArray[np.float32]
    """φ of the mean over the tokens, (samples, groups)."""
    losses: NDArray[np.float64]
    weights: NDArray[np.float64]
    """(samples,)."""

    @property
    def weighted(self) -> NDArray[np.float64]:
        """φ times the sample's weight, (samples, groups)."""
        return self.phi * self.weights[:, None]


@dataclass(frozen=True, eq=False)
class _Meter:
    """Measures the sensitivities of samples."""

    scores: FlipScores
    path: Path
    tokens: int
    """Tokens of a sample that are read."""
    weighting: Literal["token", "sequence"]
    advance: Callable[[], object]
    """Called after each sample."""

    def measure(self, samples: Samples, rows: NDArray[np.int64], signs: SignCounts | None = None) -> Sensitivities:
        """The sensitivities of the samples at `rows`; `signs` counts their δ, too."""
        phi = np.zeros((len(rows), self.scores.groups), np.float32)
        losses, weights = np.zeros(len(rows)), np.ones(len(rows))
        for position, row in enumerate(rows):
            ids = samples.input_ids([row])[0][: self.tokens]
            receive = _receiver(self.scores.layers, phi[position], signs)
            losses[position] = self.scores.scores(ids, self.scores.base(ids), receive, self.path)
            if self.weighting == "token":
                weights[position] = len(ids) - 1  # predictions
            self.advance()
        return Sensitivities(phi, losses, weights)


class SignCounts:
    """Counts δ_ij(s) < 0 over samples s for weights spread over the model: how far samples agree on a flip."""

    def __init__(self, scores: FlipScores) -> None:
        import torch

        every = max(1, sum(layer.sign.numel() for layer in scores.layers) // WATCHED)
        self.places = []
        for layer in scores.layers:
            spread = torch.arange(0, layer.sign.numel(), every, device=layer.sign.device)
            self.places.append(spread[layer.sign.flatten()[spread] != 0])
        self.negative = [np.zeros(len(places), np.int64) for places in self.places]
        self.seen = [0] * len(self.places)

    def add(self, layer: int, delta: Tensor) -> None:
        """Count the signs of one sample's δ of a layer, (out, in)."""
        self.negative[layer] += (delta.flatten()[self.places[layer]] < 0).cpu().numpy()
        self.seen[layer] += 1

    def summary(self, samples: int) -> dict[str, Any]:
        """For the notes: how often a flip helps, and how far samples agree."""
        shares = [negative / seen for negative, seen in zip(self.negative, self.seen, strict=True) if seen]
        share = np.concatenate(shares) if shares else np.zeros(0)
        if not len(share):
            return {"weights": 0, "samples": samples}
        return {
            "weights": len(share),
            "samples": samples,
            "flip_helps_on_average_share": digits(float(share.mean())),
            "samples_agree_9_of_10": digits(float(((share <= 0.1) | (share >= 0.9)).mean())),
            "samples_split_4_to_6_of_10": digits(float(((share >= 0.4) & (share <= 0.6)).mean())),
        }


def _receiver(layers: list[RoundedLayer], phi: NDArray[np.float32], signs: SignCounts | None) -> Any:
    def receive(number: int, delta: Tensor) -> None:
        layer = layers[number]
        sums = layer.group_sums(delta.square()).sqrt()
        phi[layer.first : layer.first + layer.groups] = sums.cpu().numpy()
        if signs is not None:
            signs.add(number, delta)

    return receive


def _reference(pool: Pool) -> tuple[Samples, str]:
    if len(pool.reference):
        return pool.reference, pool.reference_name
    return pool, "pool (the tuning split is empty)"


def _group_names(layers: list[RoundedLayer]) -> Any:
    first = np.array([layer.first for layer in layers])

    def name(group: int) -> str:
        layer = layers[int(np.searchsorted(first, group, side="right")) - 1]
        rows, columns = layer.of_group(group)
        return f"{layer.name} outputs {rows.start}-{rows.stop - 1} inputs {columns.start}-{columns.stop - 1}"

    return name


def _sensitivity(layers: list[RoundedLayer], phi: NDArray[np.float32], name: Any) -> dict[str, Any]:
    """S of groups and modules, sqrt(mean over the reference of Σ δ²), the largest first."""
    squares = (phi.astype(np.float64) ** 2).mean(0)
    of_module = [float(squares[layer.first : layer.first + layer.groups].sum()) for layer in layers]
    modules = np.argsort(-np.array(of_module), kind="stable")[:SHOWN]
    groups = np.argsort(-squares, kind="stable")[:SHOWN]
    return {
        "modules": [{"module": layers[i].name, "sensitivity": digits(of_module[i] ** 0.5)} for i in modules],
        "groups": [{"group": name(int(g)), "sensitivity": digits(squares[g] ** 0.5)} for g in groups],
    }


def _median_tokens(lengths: NDArray[Any], picks: NDArray[np.int64]) -> dict[str, float]:
    """Median length of the chosen samples and of all candidates."""
    return {"chosen": float(np.median(lengths[picks])), "candidates": float(np.median(lengths))}


def _grid_notes(scores: FlipScores, bits: int) -> dict[str, Any]:
    fixed = sum(int((layer.sign == 0).sum()) for layer in scores.layers)
    return {
        "bits": bits,
        "group_sizes": sorted({layer.width for layer in scores.layers}),
        "layers": len(scores.layers),
        "groups": scores.groups,
        "weights_without_a_flip": digits(fixed / sum(layer.sign.numel() for layer in scores.layers)),
    }


def _objective_notes(
    objective: SensitivityCoverage, picks: NDArray[np.int64], random_sets: list[NDArray[np.int64]]
) -> dict[str, Any]:
    values = [objective.value(rows) / objective.scale for rows in random_sets]
    return {
        "reached": digits(objective.value(picks) / objective.scale),
        "random_sets_mean": digits(float(np.mean(values))),
        "random_sets_largest": digits(max(values)),
        "random_sets": RANDOM_SETS,
    }
