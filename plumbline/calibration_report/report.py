"""One page that says which calibration choice is better, and whether the difference is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.calibration_report import answers, glossary, sections
from plumbline.calibration_report.extremes import leading_samples
from plumbline.calibration_report.page import environment
from plumbline.calibration_report.plots import DIFFERENCE, DOMAINS, Mark, plot_forest, plot_heat
from plumbline.calibration_report.study import Study

TEMPLATE = "template.html.j2"
LEADING = 3
"""Samples per set, of those that set the most ranges, that are shown without a click."""


def render(study: Study, verdict: dict[str, Any], rows: list[dict[str, Any]], shown: Mapping[str, Any]) -> str:
    """The page as HTML, with all data escaped.

    Args:
        shown: further template variables.
    """
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            study=study,
            verdict=verdict,
            rows=rows,
            **shown,
            forest=sections.forest(study, verdict),
            domains=sections.domains(study, verdict["baseline"]),
            lengths=sections.lengths(study, verdict["baseline"]),
            layer_errors=sections.layer_errors(study),
            held_out=sections.held_out(study),
            fallbacks=sections.fallbacks(study),
            on_answers=answers.sentences(verdict["answers"], verdict["confidence"]),
            leading={choice: leading_samples(sites)[:LEADING] for choice, sites in shown["extremes"].items()},
            schemes=[glossary.scheme_sentence(study, name) for name in study.schemes],
            terms=glossary.TERMS,
            elsewhere=study.metrics[study.calibrations[0], study.schemes[0]].get("out_of_domain"),
            figures=study.metrics[study.calibrations[0], study.schemes[0]],
        )
    )


def digests(study: Study, sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """SHA-256 (hex) of the inputs of every figure; that of a model is over its weight files."""
    figures = study.metrics[study.calibrations[0], study.schemes[0]]
    return {
        "base model": figures["base_model"],
        "tokenization": figures["fingerprint"],
        "held-out samples": figures["samples_digest"],
        "set": {manifest["name"]: manifest["digest"] for manifest in sets},
        "model": {f"{choice}-{scheme}": study.weights_digest(choice, scheme) for choice, scheme in study.metrics},
    }


def write_plots(study: Study, verdict: Mapping[str, Any], out: Path) -> None:
    """Write the forest plot and the heat map, for Dagster and MLflow."""
    rivals = [choice for choice in study.calibrations if choice != verdict["baseline"]]
    if not rivals:
        return
    at = {choice: -float(place) for place, choice in enumerate(rivals)}
    panels: dict[str, list[Mark]] = {scheme: [] for scheme in study.schemes}
    for c in verdict["comparisons"]:
        relative = c.get("relative", {})
        difference, low, high = (relative.get(end) for end in ("difference", "low", "high"))
        panels[c["scheme"]].append(Mark(at[c["choice"]], difference, low, high, c["verdict"]))
    plot_forest(panels, {y: choice for choice, y in at.items()}, verdict["baseline"], out / DIFFERENCE)
    heat = sections.domains(study, verdict["baseline"])
    differing = [group for group in heat["groups"] if not any(row["same"] for row in group["rows"])]
    if not differing:
        return
    cells = {
        (row["choice"], group["scheme"]): [cell["change"] for cell in row["cells"]]
        for group in differing
        for row in group["rows"]
    }
    schemes = [group["scheme"] for group in differing]
    changes = np.array([[c for scheme in schemes for c in cells[choice, scheme]] for choice in rivals])
    columns = [f"{scheme}, {name}" for scheme in schemes for name in heat["names"]]
    plot_heat(rivals, columns, changes, heat["full"], verdict["baseline"], out / DOMAINS)
