"""What the UI shows of a calibration_set, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """The verdict on representativeness, tokens, documents, digest, counts, the strategy's notes, and the metrics."""
    manifest, measured = read_json(folder / "manifest.json"), read_json(folder / "representativeness.json")
    return {
        "verdict": measured.get("verdict"),
        **{key: manifest[key] for key in ("tokens", "documents", "digest")},
        **manifest["counts"],
        "notes": manifest["notes"],
        "representativeness": measured["sentences"],
        **_percentiles(measured),
    }


def _percentiles(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Flat: percentile per metric against what the set should represent, and the decision."""
    if measured["primary"] is None:
        return {}
    metrics = measured["references"][measured["primary"]]["metrics"]
    percentiles = {f"{name}_percentile": metric["percentile"] for name, metric in metrics.items()}
    flagged = ", ".join(metrics[name]["label"] for name in measured["flagged"])
    return {**percentiles, "p_value": measured["p_value"], "flagged": flagged or "none"}
