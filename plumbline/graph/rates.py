"""What earlier runs of a workspace took, relative to their forecast: the next forecast is corrected by it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from plumbline.artifact import replace_text

FILE = ".plumbline/rates.json"


def read_rates(root: Path) -> dict[str, float]:
    """Asset -> seconds of its last steps over those that amounts and rates give; empty before the first run."""
    try:
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        return {str(asset): float(rate) for asset, rate in content.items() if float(rate) > 0}
    except (OSError, ValueError, TypeError, AttributeError):  # absent or corrupt: a forecast without correction
        return {}


def write_rate(root: Path, asset: str, rate: float) -> None:
    """Note the rate of an asset's steps; a workspace that cannot be written keeps the earlier one."""
    with contextlib.suppress(OSError):
        place = root / FILE
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_text(place, json.dumps({**read_rates(root), asset: round(rate, 4)}, sort_keys=True))
