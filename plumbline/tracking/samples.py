"""The page of a calibration set's samples beside the run that used them."""

from __future__ import annotations

from pathlib import Path

from plumbline.artifact import read_json

SAMPLES = "samples.html"


def samples_page(root: Path, choice: str, digest: str, uri: str) -> list[Path]:
    """The page of a set, to be logged with a run; empty if there is none of this digest, or the store is a server.

    A corpus may be confidential: texts stay in the workspace unless somebody carries them out.
    """
    folder = root / "data/sample_page" / choice
    page = folder / SAMPLES
    if uri.startswith("http") or not page.is_file():
        return []
    return [page] if read_json(folder / "page.json")["digest"] == digest else []
