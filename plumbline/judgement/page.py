"""A judgement as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.calibration_report.page import environment


def render_page(content: Mapping[str, Any]) -> str:
    """The page, with all data escaped.

    Args:
        content: of a `Judgement`.
    """
    models = content["models"]
    buckets = sorted({(part["shortest"], part["longest"] or 0) for model in models for part in model["by_length"]})
    by_bucket = {
        model["name"]: {(part["shortest"], part["longest"] or 0): part for part in model["by_length"]}
        for model in models
    }
    return (
        environment(Path(__file__).parent)
        .get_template("judgement.html.j2")
        .render(
            content=content,
            models=models,
            domains=sorted({name for model in models for name in model["by_domain"]}),
            buckets=buckets,
            by_bucket=by_bucket,
            layers=max((len(model["layers"] or ()) for model in models), default=0),
        )
    )
