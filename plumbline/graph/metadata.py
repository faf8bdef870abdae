"""An artifact's summary as Dagster metadata: the sentence and the plots first, long JSON last."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg

from plumbline.markdown import literal

PREVIEW_BYTES = 150_000  # metadata is stored in the event log
PAGES = "/pages"
"""Where `plumbline ui` serves the HTML pages of artifacts (cli/pages.py)."""


def metadata_of(root: Path, folder: Path, summary: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What the UI shows of an artifact, in reading order.

    Args:
        root: of the workspace.
        folder: of the artifact.
        summary: what the artifact says about itself.
        record: how it was made: hashes, parameters, inputs.
    """
    shown = as_metadata(summary) | _pages(root, folder) | _plots(folder)
    return in_reading_order(shown) | as_metadata(record)


def as_metadata(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a summary to Dagster metadata; entries that are None or empty are left out.

    Numbers are rounded to six digits and words stay as they are. A URL becomes a link, a list of rows a table, a list
    of sentences a Markdown list, everything else JSON.
    """
    metadata: dict[str, Any] = {}
    for name, value in summary.items():
        if value is None or value in ({}, []):
            continue
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            metadata[name] = dg.MetadataValue.url(value)
        elif isinstance(value, (bool, int, float, str, dg.MetadataValue)):
            metadata[name] = _shown(value)
        elif isinstance(value, list) and all(isinstance(row, Mapping) for row in value):
            records = [dg.TableRecord({k: _shown(v) for k, v in row.items()}) for row in value[:200]]
            metadata[name] = dg.MetadataValue.table(records)
        elif isinstance(value, list) and all(isinstance(line, str) and " " in line for line in value):
            metadata[name] = dg.MetadataValue.md("\n".join(f"- {literal(line)}" for line in value))
        else:
            metadata[name] = dg.MetadataValue.json(value)
    return metadata


def in_reading_order(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences, then links and plots, numbers and names, tables, and JSON; within these the order stays."""
    return dict(sorted(metadata.items(), key=lambda item: _rank(item[1])))


def _rank(value: Any) -> int:
    if isinstance(value, dg.MarkdownMetadataValue):
        return 2 if (value.md_str or "").startswith("![") else 0
    if isinstance(value, dg.UrlMetadataValue):
        return 1
    if isinstance(value, str) and " " in value:
        return 0
    if isinstance(value, dg.TableMetadataValue):
        return 4
    return 5 if isinstance(value, dg.JsonMetadataValue) else 3


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, (bool, int, str, dg.MetadataValue)) else str(value)


def _pages(root: Path, folder: Path) -> dict[str, Any]:
    """A link to each page of an artifact, by the page's name."""
    data = root / "data"
    return {
        page.stem: dg.MetadataValue.url(f"{PAGES}/{quote(page.relative_to(data).as_posix())}")
        for page in sorted(folder.glob("*.html"))
        if data in page.parents
    }


def _plots(folder: Path) -> dict[str, Any]:
    plots = {}
    for png in sorted(folder.glob("*.png")):
        if png.stat().st_size < PREVIEW_BYTES:
            data = base64.b64encode(png.read_bytes()).decode()
            plots[png.stem] = dg.MetadataValue.md(f"![{png.stem}](data:image/png;base64,{data})")
    return plots
