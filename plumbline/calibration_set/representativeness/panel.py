"""The panel: every metric of a set against production, compared with its null, and one decision over all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.activations import Activations
from plumbline.calibration_set.representativeness.classifier import Classifier, in_words
from plumbline.calibration_set.representativeness.domains import Domains
from plumbline.calibration_set.representativeness.embeddings import EmbeddingDistances
from plumbline.calibration_set.representativeness.lengths import Lengths
from plumbline.calibration_set.representativeness.metric import Aspect, Metric
from plumbline.calibration_set.representativeness.null import (
    DRAWS,
    LEVEL,
    against_null,
    family_wise,
    random_rows,
    rounded,
)
from plumbline.calibration_set.representativeness.part import Part
from plumbline.calibration_set.representativeness.tokens import Tokens

NULLS_KEPT = 4
NAMED = 3
"""Most flagged metrics that the verdict names; all of them are in `flagged`."""


@dataclass(frozen=True, eq=False)
class Panel:
    """A pool and a production sample, prepared to compare many sets."""

    name: str
    """The reference: `tuning` or `production`."""
    population: Part
    """Samples of the pool from which random sets are drawn, before any filter by domain, as that filter is part of the
    choice."""
    production: Part
    pool_samples: int
    production_samples: int
    aspects: tuple[Aspect, ...]
    unmeasured: Mapping[str, str]
    """Aspect -> reason why it is not measured."""
    draws: int = DRAWS
    nulls: dict[int, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    """Size of a set -> metric -> values of the draws, shared by the choices of one size."""

    @classmethod
    def prepare(
        cls,
        name: str,
        population: Part,
        production: Part,
        special_ids: Sequence[int],
        name_of: Callable[[int], str],
        domains: Sequence[str],
        *,
        pool_samples: int | None = None,
        production_samples: int | None = None,
        activations: Activations | None = None,
        unmeasured: Mapping[str, str] | None = None,
        draws: int = DRAWS,
    ) -> Panel:
        """Prepare every aspect.

        Args:
            special_ids: token ids that are not text.
            name_of: token id -> how to show it.
            domains: columns of `Part.domain_tokens`.
            pool_samples, production_samples: sizes of the whole of which `population` and `production` are a part.
            unmeasured: `embeddings`, `activations` -> reason why there are none.
        """
        aspects: list[Aspect] = [
            Lengths.prepare(population, production),
            Domains.prepare(population, production),
            Tokens.prepare(population, production, special_ids, domains),
        ]
        if population.embeddings is not None and production.embeddings is not None:
            aspects.append(EmbeddingDistances.prepare(population, production))
        aspects.append(Classifier.prepare(population, production, name_of))
        if activations is not None:
            aspects.append(activations)
        sizes = pool_samples or len(population), production_samples or len(production)
        return cls(name, population, production, *sizes, tuple(aspects), unmeasured or {}, draws)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric of the panel by name."""
        return {name: metric for aspect in self.aspects for name, metric in aspect.metrics.items()}

    def rows(self, n: int, aspect: Aspect) -> NDArray[np.int64]:
        """The random sets of n samples for an aspect, (draws, n).

        Aspects of the same samples get the same sets. An aspect of fewer samples gets other sets, so its correlation
        with the other metrics is lost: the maximum of independent metrics is larger, and fewer sets are flagged.
        """
        return random_rows(aspect.size, n, aspect.size < self.pool_samples, self.draws)

    def null(self, n: int) -> dict[str, NDArray[np.float64]]:
        """Every metric of the random sets of n samples."""
        if n not in self.nulls:
            by_aspect = (aspect.of_draws(self.rows(n, aspect)) for aspect in self.aspects)
            null = {name: values for metrics in by_aspect for name, values in metrics.items()}
            while len(self.nulls) >= NULLS_KEPT:
                self.nulls.pop(next(iter(self.nulls)))
            self.nulls[n] = null
        return self.nulls[n]

    def measure(self, chosen: Part) -> dict[str, float]:
        """Every metric of the set that can be measured."""
        return {name: value for aspect in self.aspects for name, value in aspect.of_set(chosen).items()}

    def judge(self, chosen: Part, unmeasured: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Compare a set with production and with random sets of its size.

        Args:
            unmeasured: `embeddings`, `activations` -> reason why the set has none although production has.

        Returns:
            JSON-able: per metric the result of `against_null`, unit, label and sentence, t and p of `family_wise`;
            `p_value` and `flagged` of the panel; `gives_away`, the readable features that differ most; `verdict`;
            sentences, those of flagged metrics first.
        """
        values, null = self.measure(chosen), self.null(len(chosen))
        null = {name: null[name] for name in values}
        p_value, decided = family_wise(values, null)
        flagged = sorted((name for name in values if decided[name][1] <= LEVEL), key=lambda name: -decided[name][0])
        metrics: dict[str, Any] = {}
        where = {name: place for aspect in self.aspects for name, place in aspect.where(chosen).items()}
        for name, value in values.items():
            about = self.metrics[name]
            metric = against_null(value, null[name])
            t, p = (rounded(number) for number in decided[name])
            metric |= {"unit": about.unit, "label": about.label, "t": t, "p": p}
            if name in where:
                metric["where"] = where[name]
            metrics[name] = {**metric, "sentence": _sentence(about, metric)}
        order = [*flagged, *(name for name in values if name not in flagged)]
        gives_away = self._classifier.give_aways(chosen, self.rows(len(chosen), self._classifier))
        sentences = [metrics[name]["sentence"] for name in order]
        if "classifier_auc" in flagged:
            sentences.insert(len(flagged), in_words(gives_away))
        unmeasured = {**(unmeasured or {}), **self.unmeasured}
        sentences += [f"{aspect.capitalize()}: not measured: {why}" for aspect, why in unmeasured.items()]
        return {
            "reference": self.name,
            "reference_samples": self.production_samples,
            "samples": len(chosen),
            "null": self._null_in_words(len(chosen)),
            "metrics": metrics,
            "p_value": rounded(p_value),
            "flagged": flagged,
            "gives_away": gives_away,
            "unmeasured": unmeasured,
            "verdict": self._verdict(p_value, flagged),
            "sentences": sentences,
        }

    @property
    def _classifier(self) -> Classifier:
        return next(aspect for aspect in self.aspects if isinstance(aspect, Classifier))

    def _null_in_words(self, n: int) -> str:
        among = f"{self.pool_samples} samples"
        if len(self.population) < self.pool_samples:
            among += f", {len(self.population)} of which are drawn from, with replacement"
        return f"{self.draws} random draws of {n} samples from the pool ({among})"

    def _verdict(self, p_value: float, flagged: Sequence[str]) -> str:
        who = {"tuning": "the tuning split", "production": "the production sample"}.get(self.name, self.name)
        if not flagged:
            return f"No farther from {who} than random draws of its size (p = {p_value:.2g})."
        what = ", ".join(self.metrics[name].label for name in flagged[:NAMED])
        what += f" and {len(flagged) - NAMED} more" if len(flagged) > NAMED else ""
        return f"Farther from {who} than random draws of its size (p = {p_value:.2g}) in {what}."


def _sentence(about: Metric, metric: Mapping[str, Any]) -> str:
    value, where = metric["value"], metric.get("where")
    text = about.sentence.format(value=value, percent=100 * value, factor=np.exp(value), where=where)
    ratio = f", {metric['ratio']:.2g} times the typical random draw" if metric["ratio"] is not None else ""
    if about.zero:
        ratio = f", where the typical random draw has {metric['null']['median']:.2f}"
    return f"{text}{ratio}; {metric['percentile']:.0f} % of random draws of this size come closer."
