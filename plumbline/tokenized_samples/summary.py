"""What the UI shows of tokenized_samples, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.artifact import read_json

SHOWN = (
    "fingerprint", "documents_in", "samples_out", "tokens_in", "tokens_out", "special_tokens", "chats",
    "control_tokens", "lost", "by_split", "by_domain",
)  # fmt: skip


def summary(folder: Path) -> dict[str, Any]:
    """A sentence, fingerprint, documents and tokens in, samples and tokens out, losses, counts by split and domain."""
    accounting = read_json(folder / "accounting.json")
    lost = ", ".join(f"{loss['tokens']} {reason.replace('_', ' ')}" for reason, loss in accounting["lost"].items())
    sentence = (
        f"{accounting['documents_in']} documents became {accounting['samples_out']} samples of "
        f"{accounting['tokens_out']} tokens; " + (f"tokens lost: {lost}." if lost else "no token lost.")
    )
    return {"sentence": sentence, **{name: accounting[name] for name in SHOWN}, "shards": len(accounting["shards"])}
