"""What the UI shows of a calibration_choice, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, and every parameter of the choice."""
    choice = read_json(folder / "choice.json")
    return {"sentence": f"{choice['n']} samples by {choice['strategy']}, seed {choice['seed']}.", **choice}
