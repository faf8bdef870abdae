"""deployed_model: decides on the promotion of the best candidate under the deployed scheme; writes promotion.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, sha256_file, write_json
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model import promotion
from plumbline.deployed_model.params import DeploymentParams
from plumbline.deployed_model.promotion import FIGURES, Champion, Gate, Inputs


def build_deployed_model(
    deployment: DeploymentParams,
    scheme: Mapping[str, Any],
    calibrations: Sequence[str],
    report: ReportParams,
    inputs: Inputs,
    out: Path,
    champion: Champion | None = None,
    models: Mapping[str, str] | None = None,
    withdrawn: Mapping[str, str] | None = None,
    previous: Path | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write promotion.json: the candidate, its digests and figures, every check, and whether it becomes the champion.

    The candidate is chosen by figure alone; `verdict` says whether its lead over the report's baseline is more than
    noise. A champion is replaced only by a candidate that passes every gate.

    Args:
        scheme: the parameters of `deployment.scheme` in full.
        champion: the current champion; None if there is none.
        models: DVC hash of each pair's model.
        withdrawn: DVC hash of a model -> reason why a person rolled it back.
        previous: folder of the last decision. It is reused if it promoted the candidate on the same inputs.

    Raises:
        FileNotFoundError: a choice was not evaluated under the scheme.
    """
    metrics = {
        choice: read_json(inputs.evaluations / f"{choice}-{deployment.scheme}/metrics.json") for choice in calibrations
    }
    best = promotion.choose_champion(metrics)
    model = (models or {}).get(f"{best}-{deployment.scheme}", "")
    checks = _checks(deployment, scheme, report, inputs, best, metrics[best], champion, trust_remote_code)
    checks.append(promotion.not_withdrawn((withdrawn or {}).get(model)))
    record = {
        **_candidate(deployment, inputs, best, metrics),
        "model": model,
        "checks": [check.as_dict() for check in checks],
        "champion_before": None if champion is None else {"pair": champion.pair, "model": champion.model},
    }
    record |= promotion.decide(record, checks, champion)
    if record["decision"] == "kept" and (earlier := promotion.decided_before(previous, record)):
        record = earlier
    write_json(out / "promotion.json", record)


def _checks(
    deployment: DeploymentParams,
    scheme: Mapping[str, Any],
    report: ReportParams,
    inputs: Inputs,
    best: str,
    figures: Mapping[str, Any],
    champion: Champion | None,
    trust_remote_code: bool,
) -> list[Gate]:
    """The gates that are computed from the candidate's artifacts, quality first."""
    pair = f"{best}-{deployment.scheme}"
    evaluation, problem = (champion.evaluation, champion.problem) if champion else (None, "")
    return [
        promotion.quality(inputs.evaluations / pair, evaluation, problem, deployment, report),
        promotion.tokenization(inputs.models / pair, figures["fingerprint"], inputs.serving, trust_remote_code),
        promotion.leak(inputs.sets / best, inputs.samples, deployment),
        promotion.fallbacks(figures, deployment),
        promotion.size_and_scheme(figures, deployment, scheme),
    ]


def _candidate(
    deployment: DeploymentParams, inputs: Inputs, best: str, metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The entries of promotion.json about the candidate and the models it was chosen from."""
    figures = metrics[best]
    verdict = read_json(inputs.report / "verdict.json")
    return {
        "pair": f"{best}-{deployment.scheme}",
        "calibration": best,
        "scheme": deployment.scheme,
        "chosen": f"lowest mean KL divergence of {len(metrics)} calibration choices under {deployment.scheme}"
        + _as_good(verdict, best, deployment.scheme),
        "figures": {name: figures[name] for name in FIGURES},
        "candidates": {choice: row["kl_mean"] for choice, row in metrics.items()},
        "verdict": [s for s in verdict["sentences"] if deployment.scheme in s],
        "weights": figures["weights"],
        "base_model": figures["base_model"],
        "fingerprint": figures["fingerprint"],
        "report_sha256": sha256_file(inputs.report / "report.html"),
    }


def _as_good(verdict: Mapping[str, Any], best: str, scheme: str) -> str:
    """What to add on a choice that would do as well, where the report found no difference between it and the best."""
    for c in verdict["comparisons"]:
        if (c["choice"], c["scheme"], c["verdict"]) == (best, scheme, "no difference detected"):
            return f" (no difference from {c['baseline']} was detected: that would do as well)"
    return ""
