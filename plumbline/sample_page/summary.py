"""What the UI shows of a sample_page, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """Where the page is, and what it shows in numbers."""
    about = read_json(folder / "page.json")
    return {"page": str(folder / "samples.html"), **about}
