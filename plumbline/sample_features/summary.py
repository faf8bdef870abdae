"""What the UI shows of sample_features, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json

SHOWN = ("samples", "dimension", "embedder", "embedder_digest", "fingerprint")


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, samples, dimension, embedder, its digest, fingerprint, and the number of signatures, if any."""
    manifest = read_json(folder / "manifest.json")
    sentence = (
        f"{manifest['samples']} samples, each with its length and an embedding of {manifest['dimension']} numbers"
    )
    shown = {"sentence": f"{sentence}.", **{name: manifest[name] for name in SHOWN}}
    if manifest["signatures"] is not None:
        shown["signatures"] = sum(split["samples"] for split in manifest["signatures"]["splits"].values())
        shown["sentence"] = f"{sentence}; {shown['signatures']} with a signature of the base model."
    return shown
