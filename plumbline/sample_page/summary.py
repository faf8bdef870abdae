"""What the UI shows of a sample_page, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, and what the page shows in numbers."""
    about = read_json(folder / "page.json")
    texts = "with their texts" if about["texts"] else "without their texts"
    return {
        "sentence": f"{about['samples']} samples {texts}; {about['samples_that_set_an_extreme']} of them set a layer's "
        "extreme.",
        **about,
    }
