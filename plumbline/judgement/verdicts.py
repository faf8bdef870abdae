"""What may be said of checkpoints: intervals clustered by document, and differences that are more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.calibration_report.bootstrap import Resampled, bootstrap_ratio, holm, strata_of

FEWEST_DOCUMENTS = 16
"""Fewest documents for a verdict. Measured with 4,000 repetitions each (benchmarks/judged_alarms.py), equal checkpoints
are called different in perplexity in 6.1 % with 8 documents, 5.6 % with 12, 4.7 % with 16 and 4.7 % with 24."""
FEWEST_OF_STRATUM = 8
"""Documents of a domain that are resampled by themselves; smaller domains are put together."""
RESAMPLES, SEED = 2000, 0


def verdicts(
    tables: Mapping[str, pa.Table], against: str | None, confidence: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Judge checkpoints by their sums per document, over the same documents.

    Two families of paired tests, each with Holm's correction over the checkpoints: the change of the log-likelihood
    against the base model (perplexity), and the mean KL against that of the checkpoint `against`. Whole documents are
    resampled within each domain.

    Args:
        tables: `measured.documents` by name of the checkpoint.
        against: the checkpoint that others are compared with; None: they are compared with the base model alone.

    Returns:
        Per checkpoint `kl` (mean with low and high), `top1`, `perplexity` (ratio - 1 with low, high, verdict,
        p_adjusted),
        and except for `against` itself `against` (difference of mean KL with low, high, relative to the other's,
        verdict, p_adjusted). Verdicts: better, worse, no difference detected, identical, too few documents.
    """
    first = next(iter(tables.values()))
    tokens = first["n_tokens"].to_numpy()
    enough = len(tokens) >= FEWEST_DOCUMENTS
    rivals = [name for name in tables if against is not None and name != against]
    rows = {("kl", name): table["kl"].to_numpy() for name, table in tables.items()}
    rows |= {("agree", name): table["agree"].to_numpy().astype(float) for name, table in tables.items()}
    rows |= {("nll", name): table["nll"].to_numpy() - table["nll_base"].to_numpy() for name, table in tables.items()}
    if against is not None:
        other = tables[against]["kl"].to_numpy()
        rows |= {("difference", name): tables[name]["kl"].to_numpy() - other for name in rivals}
    resampled: dict[tuple[str, str], Resampled] = {}
    if enough:
        strata = strata_of(first["domain"].to_pylist(), FEWEST_OF_STRATUM)
        ratios = bootstrap_ratio(np.stack(list(rows.values())), tokens, strata, RESAMPLES, SEED)
        degrees = _degrees_of_freedom(tokens, strata)
        resampled = {key: replace(one, degrees_of_freedom=degrees) for key, one in zip(rows, ratios, strict=True)}
    means = {key: float(values.sum() / tokens.sum()) for key, values in rows.items()}
    judged: dict[str, dict[str, Any]] = {name: {} for name in tables}
    for kind, names in (("nll", list(tables)), ("difference", rivals)):
        tested = [name for name in names if enough and rows[kind, name].any()]
        adjusted = dict(zip(tested, holm([resampled[kind, name].p_value() for name in tested]), strict=True))
        for name in names:
            one = _interval(means[kind, name], resampled.get((kind, name)), confidence)
            one |= _verdict(means[kind, name], adjusted.get(name), bool(rows[kind, name].any()), 1 - confidence)
            judged[name]["perplexity" if kind == "nll" else "against"] = one
    for name, one in judged.items():
        one["kl"] = _interval(means["kl", name], resampled.get(("kl", name)), confidence)
        one["top1"] = _interval(means["agree", name], resampled.get(("agree", name)), confidence)
        one["perplexity"] = _as_ratio(one["perplexity"])
        if "against" in one and against is not None:
            reference = means["kl", against]
            one["against"]["relative"] = (
                {key: _divided(one["against"][key], reference) for key in ("mean", "low", "high")}
                if reference
                else None
            )
    return judged


def _degrees_of_freedom(tokens: np.ndarray, strata: np.ndarray) -> int:
    """Degrees of freedom of a standard error over documents of these lengths: as many as documents of equal length.

    The effective number of documents is (sum t)² / sum t² (Kish 1965, Survey Sampling, section 11.2). With a few long
    documents among short ones, resampling alone calls up to 7 % of equal checkpoints different; with quantiles that are
    at least Student's with these degrees, at most 5 % (benchmarks/judged_alarms.py).
    """
    effective = float(tokens.sum()) ** 2 / float((tokens.astype(float) ** 2).sum())
    return max(1, int(effective) - len(np.unique(strata)))


def _interval(mean: float, resampled: Resampled | None, confidence: float) -> dict[str, Any]:
    half = None if resampled is None else resampled.half_width(confidence)
    if half is None or not math.isfinite(half):
        return {"mean": mean, "low": None, "high": None}
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _verdict(mean: float, p_adjusted: float | None, differs: bool, alpha: float) -> dict[str, Any]:
    if not differs:
        return {"verdict": "identical", "p_adjusted": None}
    if p_adjusted is None:
        return {"verdict": "too few documents", "p_adjusted": None}
    called = "worse" if mean > 0 else "better"
    return {"verdict": called if p_adjusted <= alpha else "no difference detected", "p_adjusted": p_adjusted}


def _as_ratio(change: Mapping[str, Any]) -> dict[str, Any]:
    """A change of the mean log-likelihood as a relative change of perplexity."""
    ends = {
        key: None if change[key] is None else math.expm1(min(change[key], 700.0)) for key in ("mean", "low", "high")
    }
    return {**change, **ends}


def _divided(value: float | None, by: float) -> float | None:
    return None if value is None else value / by
