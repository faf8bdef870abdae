"""An audit as a self-contained HTML page for a reviewer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plumbline.amounts import size
from plumbline.artifact import read_json
from plumbline.calibration_report.page import environment
from plumbline.provenance.explain import LINKS
from plumbline.provenance.link import AuditResult, dig
from plumbline.provenance.model_files import samples_of

SAMPLE_PAGES = "data/sample_page"


def write_page(
    result: AuditResult,
    path: Path,
    more: Mapping[str, tuple[Any, str]],
    record: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        more: results of further options: name -> (JSON value, text).
        record: calibration.json of the model, for the list of its samples; its content is escaped.
        root: the workspace; its page of the calibration set is linked if it shows the set that the record names.
    """
    page = environment(Path(__file__).parent).get_template("audit.html.j2")
    html = page.render(
        result=result,
        meanings={link.name: link.meaning for link in LINKS},
        counts={s: sum(link.status == s for link in result.links) for s in ("verified", "missing", "tampered")},
        more={name: text for name, (_, text) in more.items()},
        samples_page=None if root is None else _samples_page(root, path, record),
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        size=size,
        samples=[_row(sample) for sample in samples_of(record)],
        choice=result.about["choice"].get("name"),
        strategy=result.about["choice"].get("strategy"),
        scheme=result.about["scheme"].get("name"),
        options={key: value for key, value in result.about["choice"].items() if value not in (None, {}, [], "")},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def _samples_page(root: Path, path: Path, record: Mapping[str, Any] | None) -> str | None:
    """Link from the page at `path` to the one that shows the samples of the model's set; None: there is none."""
    folder = root / SAMPLE_PAGES / Path(str(dig(record, "calibration_set", "choice", "name"))).name
    try:
        shown = read_json(folder / "page.json")["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if shown != dig(record, "calibration_set", "digest"):
        return None
    return quote(os.path.relpath((folder / "samples.html").resolve(), path.parent.resolve()))


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a sample that the page shows; their values may have any type."""
    documents = sample.get("doc_ids")
    return {
        "id": str(sample.get("sample_id", ""))[:16],
        "source": str(sample.get("source", ""))[:200],
        "domain": str(sample.get("domain", ""))[:80],
        "documents": [str(document)[:16] for document in documents] if isinstance(documents, list) else [],
    }
