"""One page that says which calibration choice is better, and whether the difference is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.artifact import write_json
from plumbline.calibration_report import answers, extremes, glossary, sections
from plumbline.calibration_report.answers import compare_answers
from plumbline.calibration_report.extremes import leading_samples, read_extremes
from plumbline.calibration_report.page import environment
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.plots import DIFFERENCE, DOMAINS, Mark, plot_forest, plot_heat
from plumbline.calibration_report.study import Study, read_study
from plumbline.calibration_report.verdict import judge
from plumbline.calibration_report.wording import signed

TEMPLATE = "template.html.j2"
LEADING = 3
"""Samples per set, of those that set the most ranges, that are shown without a click."""


def build_calibration_report(
    params: ReportParams,
    grid: Mapping[str, Sequence[str]],
    evaluations: Mapping[str, Path],
    calibration_sets: Mapping[str, Path],
    statistics: Mapping[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Judge the study and write report.html (one file, nothing from the network), verdict.json, table.json and two
    pictures.

    Args:
        grid: `calibrations` and `schemes`, in the order in which the report shows them.
        evaluations: folder of evaluation by pair, `CALIBRATION-SCHEME`.
        calibration_sets: folder of calibration_set by choice.
        statistics: folder of activation_stats by choice.

    Returns:
        Headline, sentences, a row per model, which samples set the ranges, and counts.

    Raises:
        ValueError: the evaluations do not belong together, or a model was calibrated with another set than the one
            given, or statistics are of another; the message names both.
    """
    study = read_study(grid["calibrations"], grid["schemes"], evaluations)
    verdict = judge(study, params)
    verdict["answers"] = compare_answers(study, evaluations, verdict["baseline"])
    sets = sections.calibration_sets(study, calibration_sets)
    found = {choice: read_extremes(statistics[choice], calibration_sets[choice]) for choice in study.calibrations}
    said = extremes.summary(found, {of["name"]: of["samples"] for of in sets})
    rows = sections.table(study, verdict)
    verdict["digests"] = _digests(study, sets)
    write_json(out / "verdict.json", verdict)
    write_json(out / "table.json", rows)
    shown = {
        "sets": sets,
        "nulls": sections.against_null(study.calibrations, calibration_sets),
        "extremes": found,
        "on_extremes": said,
        "cost": sections.cost(study, sets, statistics),
    }
    page = render(study, verdict, rows, shown)
    (out / "report.html").write_text(page, encoding="utf-8")
    _plots(study, verdict, out)
    called = [c["verdict"] for c in verdict["comparisons"]]
    return {
        "headline": verdict["headline"],
        "sentences": verdict["sentences"],
        "on_answers": answers.sentences(verdict["answers"], verdict["confidence"]),
        "models": [_row(row) for row in rows],
        "extremes": said,
        "documents": verdict["documents"],
        "tokens": verdict["tokens"],
        "better": called.count("better"),
        "worse": called.count("worse"),
        "no_difference_detected": called.count("no difference detected"),
        "identical": called.count("identical"),
    }


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


def _digests(study: Study, sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """SHA-256 (hex) of the inputs of every figure; that of a model is over its weight files."""
    figures = study.metrics[study.calibrations[0], study.schemes[0]]
    return {
        "base model": figures["base_model"],
        "tokenization": figures["fingerprint"],
        "held-out samples": figures["samples_digest"],
        "set": {manifest["name"]: manifest["digest"] for manifest in sets},
        "model": {f"{choice}-{scheme}": study.weights_digest(choice, scheme) for choice, scheme in study.metrics},
    }


def _plots(study: Study, verdict: Mapping[str, Any], out: Path) -> None:
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


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A model as a row of Dagster's table."""
    low, high = row["difference_low"], row["difference_high"]
    return {
        **{key: row[key] for key in ("scheme", "calibration", "kl_mean", "kl_p99", "perplexity_quantized")},
        "top1_agreement": row["top1_agreement"],
        "difference": "" if row["difference"] is None else signed(row["difference"]),
        "interval": "" if low is None else f"{signed(low)} to {signed(high)}",
        "verdict": row["verdict"],
    }
