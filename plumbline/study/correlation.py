"""Does representativeness predict quality? Tests rank correlations over random sets of the same size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from plumbline.calibration_report.bootstrap import holm
from plumbline.study.power import POWER

SPEARMAN = 1.06
"""Fisher's z of Spearman's rho has a variance of about 1.06 / (S - 3) (Fieller, Hartley & Pearson 1957, Biometrika
44:470)."""


def correlate(
    distances: Mapping[int, Mapping[str, np.ndarray]],
    kl: Mapping[tuple[str, int], np.ndarray],
    schemes: Sequence[str],
    confidence: float,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Spearman's rank correlation of every metric of representativeness with held-out KL, per scheme.

    Both depend on the size of the set, so ranks are taken within a size, and the correlation of a metric is the mean
    over sizes. Its p-value comes from permuting KL within each size (two-sided), with Holm's correction for all metrics
    under all schemes. Intervals are percentiles over resampled sets within each size.

    Args:
        distances: size -> metric -> float64 (S,), a value per random set; a positive correlation means that sets
            farther from production give worse models.
        kl: (scheme, size) -> float64 (S,), mean KL of the same sets.
        resamples: number of bootstrap resamples and of permutations.

    Returns:
        Per scheme `metrics` (metric, rho, low, high, p_value, p_adjusted, predicts, by_size: n, rho, low, high),
        strongest first, without metrics and sizes that do not vary; `sets`; `detectable`: the smallest |rho| with a
        power of 0.8; `sentence`.
    """
    sizes = sorted(distances)
    sets = {n: len(next(iter(distances[n].values()))) for n in sizes}
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = {n: rng.integers(0, sets[n], (resamples, sets[n])) for n in sizes}
    permuted = {n: np.argsort(rng.random((resamples, sets[n])), axis=1) for n in sizes}
    names = sorted({name for n in sizes for name in distances[n]})
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for scheme in schemes:
        for name in names:
            series = {n: (distances[n][name], kl[scheme, n]) for n in sizes if name in distances[n]}
            one = _metric(series, drawn, permuted, confidence)
            if one is not None:
                results[scheme, name] = {"metric": name, **one}
    for entry, p in zip(results.values(), holm([entry["p_value"] for entry in results.values()]), strict=True):
        entry |= {"p_adjusted": p, "predicts": p <= 1 - confidence}
    least = _detectable([sets[n] for n in sizes], (1 - confidence) / max(1, len(results)))
    answers = []
    for scheme in schemes:
        metrics = [entry for (of_scheme, _), entry in results.items() if of_scheme == scheme]
        metrics.sort(key=lambda entry: (-abs(entry["rho"]), entry["metric"]))
        answer = {"scheme": scheme, "metrics": metrics, "sets": min(sets.values()), "detectable": least}
        answers.append({**answer, "sentence": _sentence(answer)})
    return answers


def _metric(
    series: Mapping[int, tuple[np.ndarray, np.ndarray]],
    drawn: Mapping[int, np.ndarray],
    permuted: Mapping[int, np.ndarray],
    confidence: float,
) -> dict[str, Any] | None:
    ends = 50 * (1 - confidence), 50 * (1 + confidence)
    by_size, rhos, boots, nulls = [], [], [], []
    for n, (x, y) in series.items():
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        rho = float(spearman(x[None], y[None])[0])
        boot = spearman(x[drawn[n]], y[drawn[n]])
        low, high = np.nanpercentile(boot, ends)
        by_size.append({"n": n, "rho": rho, "low": float(low), "high": float(high)})
        rhos.append(rho)
        boots.append(boot)
        nulls.append(spearman(np.broadcast_to(x, permuted[n].shape), y[permuted[n]]))
    if not rhos:
        return None
    drawn_rhos = np.stack(boots)
    varies = ~np.isnan(drawn_rhos).all(axis=0)  # a resample may repeat a single set
    rho, boot, null = float(np.mean(rhos)), np.nanmean(drawn_rhos[:, varies], axis=0), np.mean(nulls, axis=0)
    low, high = np.nanpercentile(boot, ends)
    p = (1 + int(np.sum(np.abs(null) >= abs(rho) - 1e-12))) / (len(null) + 1)
    return {"rho": rho, "low": float(low), "high": float(high), "p_value": p, "by_size": by_size}


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho of every row, float64 (R,), ties at their mean rank; NaN if a row does not vary.

    Args:
        x, y: (R, S).
    """
    a, b = (stats.rankdata(values, axis=1) for values in (x, y))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: np.ndarray = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return rho


def _detectable(sets: Sequence[int], alpha: float) -> float:
    """The smallest detectable |rho|, from the mean of Fisher's z over independent sizes.

    Its variance is the sum of 1.06 / (S - 3) over the squared number of sizes.
    """
    error = math.sqrt(sum(SPEARMAN / (count - 3) for count in sets)) / len(sets)
    return float(math.tanh((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) * error))


def _sentence(answer: Mapping[str, Any]) -> str:
    if not answer["metrics"]:
        return f"{answer['scheme']}: every set makes the same model, so there is nothing to predict."
    predicting = [entry for entry in answer["metrics"] if entry["predicts"]]
    if not predicting:
        best = answer["metrics"][0]
        return (
            f"{answer['scheme']}: no, no metric of representativeness predicts divergence (the strongest, "
            f"{best['metric']}, has rank correlation {best['rho']:+.2f}; could have seen {answer['detectable']:.2f})."
        )
    names = ", ".join(f"{e['metric']} ({e['rho']:+.2f}, {e['low']:+.2f} to {e['high']:+.2f})" for e in predicting[:3])
    more = f" and {len(predicting) - 3} more" if len(predicting) > 3 else ""
    weak = "" if abs(predicting[0]["rho"]) >= 0.5 else "; weakly"
    return f"{answer['scheme']}: divergence goes with {names}{more}{weak}."
