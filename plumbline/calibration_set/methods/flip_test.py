"""The test of hot flips: make random flips and rank their true change of the loss against the predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from plumbline.calibration_set.methods.flip_scores import PATH, ROUNDED, FlipScores, Path
from plumbline.calibration_set.methods.signed import digits
from plumbline.progress import Bar

WAYS = {ROUNDED: "one backward pass", PATH: "path integral"}
"""The ways to predict, in the order in which they are tried."""


@dataclass(frozen=True, eq=False)
class Flip:
    """Weights of one layer that are rounded the other way together."""

    layer: int
    which: Tensor
    """bool (out, in)."""


def random_flips(scores: FlipScores, count: int, weights: int, rng: np.random.Generator) -> list[Flip]:
    """`count` random flips, each of `weights` weights of one group that have a neighbour to flip to."""
    free_weights = [layer.group_sums((layer.sign != 0).to(torch.float32)).cpu().numpy() for layer in scores.layers]
    groups = np.flatnonzero(np.concatenate(free_weights))
    owner = np.repeat(np.arange(len(scores.layers)), [layer.groups for layer in scores.layers])
    flips = []
    for group in rng.choice(groups, count) if len(groups) else ():
        layer = scores.layers[owner[group]]
        place = layer.of_group(int(group))
        inside = (layer.sign[place] != 0).cpu()
        mask = np.zeros(inside.numel(), dtype=bool)
        mask[rng.permutation(np.flatnonzero(inside.numpy()))[:weights]] = True
        which = torch.zeros(layer.sign.shape, dtype=torch.bool)
        which[place] = torch.from_numpy(mask.reshape(inside.shape))
        flips.append(Flip(int(owner[group]), which.to(layer.sign.device)))
    return flips


class FlipTest:
    """Flips on some texts; the true changes of the loss are measured once."""

    def __init__(self, scores: FlipScores, flips: Sequence[Flip], texts: Sequence[NDArray[np.int32]]) -> None:
        self.scores, self.flips, self.texts = scores, flips, texts
        self._changes: NDArray[np.float64] | None = None
        """True mean change of L per flip."""

    def rank_correlation(self, path: Path) -> float:
        """Spearman's ρ of predicted and true changes over the flips; NaN where either are all equal."""
        measure = self._changes is None
        predicted, changes = np.zeros(len(self.flips)), np.zeros(len(self.flips))

        def receive(layer: int, delta: Tensor) -> None:
            for number, flip in enumerate(self.flips):
                if flip.layer == layer:
                    predicted[number] += float(delta[flip.which].double().sum())

        for ids in Bar(self.texts, unit="sample", desc="real flips"):
            base = self.scores.base(ids)
            self.scores.scores(ids, base, receive, path)
            if measure:
                rounded = self.scores.loss(ids, base)
                for number, flip in enumerate(self.flips):
                    with self.scores.flipped(flip.layer, flip.which):
                        changes[number] += self.scores.loss(ids, base) - rounded
        if self._changes is None:
            self._changes = changes / len(self.texts)
        if not self.flips or np.ptp(predicted) == 0 or np.ptp(self._changes) == 0:
            return float("nan")
        return float(spearmanr(predicted, self._changes).statistic)

    def validate(self, threshold: float) -> Validation:
        """Test one backward pass at Ŵ, and the path integral only where that fails."""
        correlations: dict[Path, float] = {}
        for path in WAYS:
            correlations[path] = self.rank_correlation(path)
            if correlations[path] >= threshold:  # false for NaN
                return Validation(path, True, correlations, threshold)
        return Validation(ROUNDED, False, correlations, threshold)


@dataclass(frozen=True)
class Validation:
    """How the predictions of a `FlipTest` ranked the flips."""

    path: Path
    """Where to take gradients: the first path that passed, `ROUNDED` if none did."""
    passed: bool
    correlations: dict[Path, float]
    threshold: float

    def by_way(self) -> dict[str, float]:
        """The rank correlations by the name of the way to predict."""
        return {WAYS[path]: value for path, value in self.correlations.items()}

    def notes(self, test: FlipTest, weights_per_flip: int) -> dict[str, Any]:
        """The test for the notes of a selection."""
        return {
            "validated": self.passed,
            "rank_correlation": {way: digits(value) for way, value in self.by_way().items()},
            "threshold": self.threshold,
            "flips": len(test.flips),
            "weights_per_flip": weights_per_flip,
            "samples": len(test.texts),
        }

    def refusal(self, test: FlipTest) -> str:
        """The error message where no path passed."""
        values = " and ".join(f"{value:.2f} by {way}" for way, value in self.by_way().items())
        return (
            f"hot_flip: predicted and true changes of the loss have rank correlation {values} over {len(test.flips)} "
            f"real flips on {len(test.texts)} samples, expected at least {self.threshold:g}. The scores do not predict "
            "what a flip does to this model on this grid: choose more `bits`, fewer `weights_per_flip` or another "
            "strategy; `accept_unvalidated: true` in params.yaml accepts the set all the same"
        )
