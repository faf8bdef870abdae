"""An audit as one page that can be handed to a reviewer: nothing on it comes from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.calibration_report.page import environment
from plumbline.provenance.link import AuditResult
from plumbline.provenance.model_links import samples_of

MEANINGS = {
    "registry": "The registered version is this very folder, and its tags say what the model says.",
    "weights file": "The file is one of a model that is known here.",
    "DVC's cache": "The folder was taken from DVC's store by its hash.",
    "hub cache": "Every file of the snapshot holds what its name in the hub's cache says.",
    "signature": "Whoever holds the private key signed every file of the folder as it is.",
    "statement": "The signed in-toto statement says of this model what the model itself says.",
    "record": "The model carries a list of what it was calibrated on; its digest is sealed in config.json.",
    "weights": "The weights are those that were written when that list was written.",
    "model folder": "No file was added, removed or changed since the model was made.",
    "tokenizer": "The tokenizer is the one that cut the calibration texts into tokens.",
    "base model": "The full-precision model is the one whose activations were measured.",
    "statistics": "The stored statistics are those that scales and rounding came from.",
    "calibration set": "The samples are those that the statistics saw; every id is the digest of its tokens.",
    "documents": "The texts behind the samples are in the corpus; every id is the digest of its text.",
}
"""What each link shows, for a reader who has not seen Plumbline."""


def write_page(
    result: AuditResult, path: Path, more: Mapping[str, tuple[Any, str]], record: Mapping[str, Any] | None = None
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        more: what was asked for beside the audit: by name, for machines and for people.
        record: calibration.json of the model, for the list of its samples; its content is escaped.
    """
    page = environment(Path(__file__).parent).get_template("audit.html.j2")
    text = page.render(
        result=result,
        meanings=MEANINGS,
        counts={s: sum(link.status == s for link in result.links) for s in ("verified", "missing", "tampered")},
        more={name: told for name, (_, told) in more.items()},
        samples=[_row(sample) for sample in samples_of(record)],
        choice=result.about["choice"].get("name"),
        strategy=result.about["choice"].get("strategy"),
        scheme=result.about["scheme"].get("name"),
        options={key: value for key, value in result.about["choice"].items() if value not in (None, {}, [], "")},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as the page shows it; nothing in it may be trusted to have the right type."""
    documents = sample.get("doc_ids")
    return {
        "id": str(sample.get("sample_id", ""))[:16],
        "source": str(sample.get("source", ""))[:200],
        "domain": str(sample.get("domain", ""))[:80],
        "documents": [str(document)[:16] for document in documents] if isinstance(documents, list) else [],
    }
