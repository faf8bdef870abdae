"""A classifier two-sample test: can a classifier tell the set from production, and by which features?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.embeddings import REFERENCE
from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.null import rounded
from plumbline.calibration_set.representativeness.part import FOLDS, Part, selection_matrix

TOKENS = 48
"""Number of production's most frequent tokens whose shares are features of a sample."""
COMPONENTS = 16
"""Principal components of the embeddings."""
RIDGE = 10.0
"""Added to the variances of standardised features, as a set has few samples for so many. Of 0.1 to 100 the value that
best told sets with a planted defect from random ones, for 32 to 256 samples."""


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """The classifier's features of a sample: log length, share of distinct tokens, share of each frequent token,
    principal components of the embedding; each centred and scaled by production."""

    names: tuple[str, ...]
    """Names of the readable features; the components follow without a name."""
    token_ids: NDArray[np.int64]
    mean: NDArray[np.float64]
    """Production's, (p,)."""
    scale: NDArray[np.float64]
    """Production's standard deviation, 1 instead of 0, (p,)."""
    axes: NDArray[np.float64]
    """(d, COMPONENTS); no columns without embeddings."""

    @classmethod
    def prepare(cls, population: Part, production: Part, name_of: Callable[[int], str]) -> ClassifierFeatures:
        total = np.asarray(production.counts.sum(axis=0)).ravel()
        token_ids = np.argsort(-total, kind="stable")[: min(TOKENS, np.count_nonzero(total))]
        names = ("length", "share of distinct tokens", *(f"share of {name_of(int(i))}" for i in token_ids))
        axes = np.empty((0, 0))
        if population.embeddings is not None and production.embeddings is not None:
            # of both: production's axes alone would miss directions in which only the pool varies
            both = np.concatenate([population.embeddings, production.embeddings])
            axes = np.linalg.eigh(np.cov(both.T))[1][:, ::-1][:, :COMPONENTS]
        raw = cls(names, token_ids, np.zeros(1), np.ones(1), axes)._raw(production)
        spread = raw.std(axis=0)
        return cls(names, token_ids, raw.mean(axis=0), np.where(spread > 1e-9, spread, 1.0), axes)

    def of(self, part: Part) -> NDArray[np.float64]:
        """Features, (N, p), without the components if the samples have no embeddings."""
        raw = self._raw(part)
        width = raw.shape[1]
        return (raw - self.mean[:width]) / self.scale[:width]

    def _raw(self, part: Part) -> NDArray[np.float64]:
        columns = [np.log(part.lengths), np.diff(part.counts.indptr) / part.lengths]
        in_counts = self.token_ids < part.counts.shape[1]
        shares = np.zeros((len(part), len(self.token_ids)))
        shares[:, in_counts] = part.counts[:, self.token_ids[in_counts]].toarray() / part.lengths[:, None]
        seen = [part.embeddings @ self.axes] if self.axes.size and part.embeddings is not None else []
        return np.column_stack([*columns, shares, *seen])


@dataclass(frozen=True, eq=False)
class Classifier:
    """Linear discriminant analysis, evaluated on held-out documents (Lopez-Paz and Oquab, Revisiting Classifier
    Two-Sample Tests, 2017)."""

    features: ClassifierFeatures
    population: NDArray[np.float64]
    """(N, p)."""
    fold: NDArray[np.int64]
    """(N,)."""
    production: tuple[NDArray[np.float64], ...]
    """Per fold, (m_f, p)."""
    others: tuple[ClassMoments, ...]
    """Per fold, production's moments in the other folds."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "classifier_auc": Metric(
            "told apart by a classifier",
            "area under the ROC curve (0.5: cannot be told apart)",
            "A classifier that sees length, tokens and topic tells the set's samples from production's with an AUC of "
            "{value:.2f} (0.5: it cannot)",
            zero=0.5,
        )
    }

    @classmethod
    def prepare(cls, population: Part, production: Part, name_of: Callable[[int], str]) -> Classifier:
        features = ClassifierFeatures.prepare(population, production, name_of)
        reference = production.take(np.arange(min(len(production), REFERENCE)))
        x = features.of(reference)
        return cls(
            features,
            features.of(population),
            population.fold,
            tuple(x[reference.fold == fold] for fold in range(FOLDS)),
            tuple(moments(x[reference.fold != fold]) for fold in range(FOLDS)),
        )

    @property
    def size(self) -> int:
        return len(self.population)

    def of_set(self, chosen: Part) -> dict[str, float]:
        if self.features.axes.size and chosen.embeddings is None:
            return {}
        return {"classifier_auc": self._auc(self.features.of(chosen), chosen.fold)}

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"classifier_auc": np.array([self._auc(self.population[row], self.fold[row]) for row in rows])}

    def where(self, chosen: Part) -> dict[str, str]:
        return {}

    def _auc(self, x: NDArray[np.float64], fold: NDArray[np.int64]) -> float:
        """Area under the ROC curve, set (n, p) against production: mean over the folds, weighted by pairs.

        The samples of a document are all in one fold. A fold without training or test samples is skipped; if all are
        (a single sample), the area is 0.5.
        """
        area = pairs = 0.0
        for held in range(FOLDS):
            test, train = x[fold == held], x[fold != held]
            against, others = self.production[held], self.others[held]
            if not (len(test) and len(train) and len(against) and others.count):
                continue
            direction = discriminant(moments(train), others)
            weight = len(test) * len(against)
            area += weight * auc(test @ direction, against @ direction)
            pairs += weight
        return area / pairs if pairs else 0.5

    def give_aways(self, chosen: Part, rows: NDArray[np.int64], most: int = 5) -> list[dict[str, object]]:
        """The readable features whose mean is farthest from that of random draws, farthest first.

        Per feature: difference (of the set's mean from production's, in standard deviations of production's samples),
        and its z and percentile among the draws `rows` (B, n).
        """
        readable = len(self.features.names)
        mine = self.features.of(chosen)[:, :readable].mean(axis=0)
        sums = selection_matrix(rows, len(self.population)) @ self.population[:, :readable]
        null = sums / rows.shape[1]
        spread = null.std(axis=0)
        z = np.divide(mine - null.mean(axis=0), spread, out=np.zeros(readable), where=spread > 1e-9)
        features = []
        for place in np.argsort(-np.abs(np.round(z, 6)), kind="stable")[:most]:
            below = (
                np.mean(null[:, place] < mine[place] - 1e-9) + np.mean(np.abs(null[:, place] - mine[place]) <= 1e-9) / 2
            )
            features.append(
                {
                    "feature": self.features.names[place],
                    "difference": rounded(float(mine[place])),
                    "z": rounded(float(z[place])),
                    "percentile": rounded(float(100 * below)),
                }
            )
        return features


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Count, mean and scatter of the samples of a class."""

    count: int
    mean: NDArray[np.float64]
    """(p,)."""
    scatter: NDArray[np.float64]
    """Sum of (x - mean)(x - mean)^T, (p, p)."""


def moments(x: NDArray[np.float64]) -> ClassMoments:
    """The moments of the rows of x (n, p); n may be 0."""
    mean = x.sum(axis=0) / max(len(x), 1)
    return ClassMoments(len(x), mean, (x - mean).T @ (x - mean))


def discriminant(x: ClassMoments, y: ClassMoments) -> NDArray[np.float64]:
    """Fisher's direction (p,) that tells x from y: (S + RIDGE I)^-1 (mean x - mean y), S the covariance within."""
    within = (x.scatter + y.scatter) / (x.count + y.count)
    direction = np.linalg.solve(within + RIDGE * np.eye(len(within)), x.mean - y.mean)
    return np.asarray(direction, dtype=np.float64)


def auc(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Share of pairs in which the score of x (n,) is above that of y (m,), ties half."""
    scale = max(float(np.abs(x).max()), float(np.abs(y).max()), 1e-300)
    x, y = np.round(x / scale, 10), np.sort(np.round(y / scale, 10))  # equal samples tie despite rounding
    above = np.searchsorted(y, x, side="left") + np.searchsorted(y, x, side="right")
    return float(above.sum() / (2 * len(x) * len(y)))


def in_words(features: Iterable[dict[str, object]]) -> str:
    """The features as a sentence."""
    parts = [f"{feature['feature']} ({float(str(feature['z'])):+.1f} sd of random draws)" for feature in features]
    return "What gives it away most: " + ", ".join(parts) if parts else ""
