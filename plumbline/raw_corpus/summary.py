"""What the UI shows of a raw_corpus, from its files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json
from plumbline.raw_corpus.quarantine import quarantine


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, shards, rows, documents, rejected by reason, documents by source, and the files held back."""
    manifest = read_json(folder / "manifest.json")
    by_source = Counter(dict.fromkeys(manifest["sources"], 0))
    for entry in manifest["shards"]:
        by_source[entry["source"]] += entry["documents"]
    rejected = manifest["totals"]["rejected"]
    aside = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(rejected.items()))
    return {
        "sentence": f"{manifest['totals']['documents']} documents from {len(manifest['shards'])} files; "
        + (f"set aside: {aside}." if aside else "no row set aside."),
        "shards": len(manifest["shards"]),
        **manifest["totals"],
        "documents_by_source": dict(by_source),
        "quarantine": quarantine(folder),
    }
