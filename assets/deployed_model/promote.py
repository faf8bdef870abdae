"""Which quantized model is deployed, on which figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.artifact import read_json, sha256_file, write_json

FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")


def choose_champion(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The calibration choice with the lowest mean KL divergence on the report split; among equals the first named.

    Args:
        metrics: metrics.json of each choice under the deployed scheme.

    Raises:
        ValueError: there is no choice.
    """
    if not metrics:
        raise ValueError(
            "no evaluation to choose from: name a calibration choice under grid.calibrations in params.yaml"
        )
    return min(metrics, key=lambda choice: float(metrics[choice]["kl_mean"]))


def build_promotion(
    scheme: str, calibrations: Sequence[str], evaluations: Path, report: Path, out: Path
) -> dict[str, Any]:
    """Write promotion.json: the model that carries the alias `champion`, its digests, and why it was chosen.

    The choice is by figure alone; `verdict` says whether its lead over the baseline is more than noise, so a record
    never reads as a claim that the report does not make.

    Args:
        evaluations: the folder that holds `CALIBRATION-SCHEME/metrics.json`.
        report: the folder calibration_report, for the sentences of its verdict.

    Raises:
        FileNotFoundError: a choice was not evaluated under the scheme.
    """
    metrics = {choice: read_json(evaluations / f"{choice}-{scheme}" / "metrics.json") for choice in calibrations}
    champion = choose_champion(metrics)
    figures = metrics[champion]
    record = {
        "pair": f"{champion}-{scheme}",
        "calibration": champion,
        "scheme": scheme,
        "why": f"lowest mean KL divergence of {len(metrics)} calibration choices under {scheme}",
        "figures": {name: figures[name] for name in FIGURES},
        "candidates": {choice: row["kl_mean"] for choice, row in metrics.items()},
        "verdict": [s for s in read_json(report / "verdict.json")["sentences"] if scheme in s],
        "weights": figures["weights"],
        "base_model": figures["base_model"],
        "fingerprint": figures["fingerprint"],
        "report_sha256": sha256_file(report / "report.html"),
    }
    write_json(out / "promotion.json", record)
    return {"champion": record["pair"], "why": record["why"], **record["figures"], "candidates": record["candidates"]}
