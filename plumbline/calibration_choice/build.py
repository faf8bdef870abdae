"""calibration_choice: reads an entry of `calibrations:` as it was launched; writes choice.json, complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import write_json
from plumbline.calibration_choice.choice import resolve


def build_calibration_choice(name: str, entry: Mapping[str, Any], out: Path) -> None:
    """Write `choice.json`: every parameter of the choice `name`, flat, as in params.yaml, with `name` added.

    Args:
        name: the key under `calibrations:`, e.g. `random-64`.
        entry: what stands there with what the launch changed; what is None has its default.
        out: existing empty folder.

    Raises:
        ValueError: as `resolve`.
    """
    write_json(out / "choice.json", resolve(name, {key: value for key, value in entry.items() if value is not None}))
