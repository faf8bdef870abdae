"""One page that says which calibration choice is better, and whether the difference is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.artifact import write_json
from assets.calibration_report import glossary, sections
from assets.calibration_report.page import environment
from assets.calibration_report.params import ReportParams
from assets.calibration_report.study import Study, read_study
from assets.calibration_report.verdict import judge

TEMPLATE = "template.html.j2"


def build_calibration_report(
    params: ReportParams,
    grid: Mapping[str, Sequence[str]],
    evaluations: Mapping[str, Path],
    calibration_sets: Mapping[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Judge the study and write report.html (one file, nothing from the network), verdict.json and table.json.

    Args:
        grid: `calibrations` and `schemes`, in the order in which the report shows them.
        evaluations: folder of evaluation by pair, `CALIBRATION-SCHEME`.
        calibration_sets: folder of calibration_set by choice.

    Returns:
        Headline, sentences, and counts.

    Raises:
        ValueError: the evaluations do not belong together, or a model was calibrated with another set than the one
            given; the message names both.
    """
    study = read_study(grid["calibrations"], grid["schemes"], evaluations)
    verdict = judge(study, params)
    sets = sections.calibration_sets(study, calibration_sets)
    rows = sections.table(study, verdict)
    write_json(out / "verdict.json", verdict)
    write_json(out / "table.json", rows)
    (out / "report.html").write_text(render(study, verdict, rows, sets), encoding="utf-8")
    called = [c["verdict"] for c in verdict["comparisons"]]
    return {
        "headline": verdict["headline"],
        "sentences": verdict["sentences"],
        "documents": verdict["documents"],
        "tokens": verdict["tokens"],
        "better": called.count("better"),
        "worse": called.count("worse"),
        "no_difference_detected": called.count("no difference detected"),
        "identical": called.count("identical"),
    }


def render(study: Study, verdict: dict[str, Any], rows: list[dict[str, Any]], sets: list[dict[str, Any]]) -> str:
    """The page as HTML; everything that came from data is escaped."""
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            study=study,
            verdict=verdict,
            rows=rows,
            sets=sets,
            forest=sections.forest(study, verdict),
            bars=sections.bars(study, verdict),
            domains=sections.domains(study, verdict["baseline"]),
            lengths=sections.lengths(study, verdict["baseline"]),
            held_out=sections.held_out(study),
            fallbacks=sections.fallbacks(study),
            schemes=[glossary.scheme_sentence(study, name) for name in study.schemes],
            terms=glossary.TERMS,
            elsewhere=study.metrics[study.calibrations[0], study.schemes[0]].get("out_of_domain"),
            figures=study.metrics[study.calibrations[0], study.schemes[0]],
        )
    )
