"""Summary of a deployed_model for the UI, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """The decision with its reason, the candidate with its figures, all candidates, and every check."""
    record = read_json(folder / "promotion.json")
    return {
        "why": record["why"],
        "decision": record["decision"],
        "candidate": record["pair"],
        **record["figures"],
        "candidates": record["candidates"],
        "checks": [{"check": c["name"], "passed": c["passed"], "sentence": c["sentence"]} for c in record["checks"]],
    }
