"""What the UI shows of a calibration_choice, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """Every parameter of the choice."""
    return dict(read_json(folder / "choice.json"))
