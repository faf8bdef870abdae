"""Which quantized model is to be deployed: the candidate, what it was held to, and the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plumbline.artifact import read_json, sha256_file, write_json
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model import gates
from plumbline.deployed_model.gates import Gate
from plumbline.deployed_model.params import DeploymentParams

FIGURES = ("kl_mean", "kl_p99", "perplexity_base", "perplexity_quantized", "top1_agreement", "weights_bytes")

Decision = Literal["promoted", "kept", "rejected"]


@dataclass(frozen=True)
class Champion:
    """The model that carries the alias when the decision is made."""

    pair: str
    model: str
    """DVC hash of its folder."""
    evaluation: Path | None
    """Its evaluation on today's report split; None with `problem`."""
    problem: str = ""
    """Why it could not be evaluated there."""


@dataclass(frozen=True)
class Inputs:
    """Folders of the graph that the decision reads; those of `models` and `sets` hold a folder per pair and choice."""

    evaluations: Path
    models: Path
    sets: Path
    samples: Path
    report: Path
    serving: Path | None = None


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
    asked: DeploymentParams,
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
) -> dict[str, Any]:
    """Write promotion.json: the candidate, its digests and figures, every check, and whether it becomes the champion.

    The candidate is chosen by figure alone; `verdict` says whether its lead over the report's baseline is more than
    noise. A champion is replaced only by a candidate that passes every check of gates.py.

    Args:
        scheme: the parameters of `asked.scheme` in full.
        champion: who carries the alias now; None: nobody.
        models: DVC hash of each pair's model.
        withdrawn: DVC hash of a model -> why it was taken back by hand.
        previous: the record of an earlier decision: on the same inputs it stands, although the candidate is the
            champion by now.

    Raises:
        FileNotFoundError: a choice was not evaluated under the scheme.
    """
    metrics = {
        choice: read_json(inputs.evaluations / f"{choice}-{asked.scheme}/metrics.json") for choice in calibrations
    }
    best = choose_champion(metrics)
    pair, figures = f"{best}-{asked.scheme}", metrics[best]
    model = (models or {}).get(pair, "")
    checks = [
        gates.quality(
            inputs.evaluations / pair,
            champion.evaluation if champion else None,
            champion.problem if champion else "",
            asked,
            report,
        ),
        gates.tokenization(inputs.models / pair, figures["fingerprint"], inputs.serving, trust_remote_code),
        gates.leak(inputs.sets / best, inputs.samples, asked),
        gates.fallbacks(figures, asked),
        gates.size_and_scheme(figures, asked, scheme),
        gates.not_withdrawn((withdrawn or {}).get(model)),
    ]
    record = {
        "pair": pair,
        "calibration": best,
        "scheme": asked.scheme,
        "chosen": f"lowest mean KL divergence of {len(metrics)} calibration choices under {asked.scheme}",
        "figures": {name: figures[name] for name in FIGURES},
        "candidates": {choice: row["kl_mean"] for choice, row in metrics.items()},
        "verdict": [s for s in read_json(inputs.report / "verdict.json")["sentences"] if asked.scheme in s],
        "model": model,
        "weights": figures["weights"],
        "base_model": figures["base_model"],
        "fingerprint": figures["fingerprint"],
        "report_sha256": sha256_file(inputs.report / "report.html"),
        "checks": [check.as_dict() for check in checks],
        "champion_before": None if champion is None else {"pair": champion.pair, "model": champion.model},
    }
    record |= _decided(record, checks, champion)
    if record["decision"] == "kept" and (stands := _decided_before(previous, record)):
        record = stands
    write_json(out / "promotion.json", record)
    return {
        "decision": record["decision"],
        "why": record["why"],
        "candidate": pair,
        **record["figures"],
        "candidates": record["candidates"],
        "checks": [{"check": c["name"], "passed": c["passed"], "sentence": c["sentence"]} for c in record["checks"]],
    }


def _decided(record: Mapping[str, Any], checks: Sequence[Gate], champion: Champion | None) -> dict[str, Any]:
    pair = record["pair"]
    failed = [check for check in checks if not check.passed]
    comparison = checks[0].found or {}
    same = champion is not None and (champion.model == record["model"] or comparison.get("verdict") == "identical")
    decision: Decision
    if same and champion is not None:
        decision, why = "kept", f"{champion.pair} is the champion, and the candidate has its weights."
    elif failed:
        kept = f"{champion.pair} stays" if champion and champion.pair != pair else "the earlier one stays"
        kept = kept if champion else "there is none"
        decision = "rejected"
        why = f"{pair} does not become the champion ({kept}): " + " ".join(check.sentence for check in failed)
    elif champion is None:
        decision, why = "promoted", f"{pair}: {record['chosen']}; there was no champion."
    else:
        earlier = "the earlier one" if champion.pair == pair else champion.pair
        decision, why = "promoted", f"{pair} replaces {earlier}. {checks[0].sentence}"
    return {"decision": decision, "why": why}


def _decided_before(previous: Path | None, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The earlier record, if it promoted this candidate on the very same inputs."""
    path = previous / "promotion.json" if previous else None
    if path is None or not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    about = (
        "pair", "figures", "candidates", "verdict", "model", "weights", "base_model", "fingerprint", "report_sha256",
    )  # fmt: skip
    same = all(found.get(name) == record[name] for name in about)
    return found if same and found.get("decision") == "promoted" else None
