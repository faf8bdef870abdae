"""calibration_choice: reads an entry of `calibrations:` as it was launched; writes choice.json, complete."""

from __future__ import annotations

from pathlib import Path

from plumbline.artifact import write_json
from plumbline.calibration_choice.choice import resolve
from plumbline.calibration_choice.params import ChoiceParams


def build_calibration_choice(name: str, params: ChoiceParams, out: Path) -> None:
    """Write `choice.json`: every parameter of the choice `name`, flat, as in params.yaml, with `name` added.

    Args:
        name: the key under `calibrations:`, e.g. `random-64`.
        params: the entry with what the launch changed; further keys are options of its strategy, and one that is None
            has its default.
        out: existing empty folder.

    Raises:
        ValueError: as `resolve`.
    """
    entry = {key: value for key, value in params.model_dump().items() if value is not None}
    write_json(out / "choice.json", resolve(name, entry))
