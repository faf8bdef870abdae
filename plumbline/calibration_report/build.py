"""calibration_report: reads every evaluation, its set and its statistics; writes the page, verdict.json, table.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.activation_stats.store import HEADER
from plumbline.artifact import read_json, write_json
from plumbline.calibration_report import extremes, sections
from plumbline.calibration_report.answers import compare_answers
from plumbline.calibration_report.extremes import read_extremes
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.report import digests, render, write_plots
from plumbline.calibration_report.study import read_study
from plumbline.calibration_report.verdict import judge


def build_calibration_report(
    params: ReportParams,
    grid: Mapping[str, Sequence[str]],
    evaluations: Mapping[str, Path],
    calibration_sets: Mapping[str, Path],
    statistics: Mapping[str, Path],
    out: Path,
) -> None:
    """Judge the study and write report.html (one file, nothing from the network), verdict.json, table.json and two
    pictures.

    Args:
        grid: `calibrations` and `schemes`, in the order in which the report shows them.
        evaluations: folder of evaluation by pair, `CALIBRATION-SCHEME`.
        calibration_sets: folder of calibration_set by choice.
        statistics: folder of activation_stats by choice.

    Raises:
        ValueError: the evaluations do not belong together, or a model was calibrated with another set than the one
            given, or statistics are of another; the message names both.
    """
    study = read_study(grid["calibrations"], grid["schemes"], evaluations)
    verdict = judge(study, params)
    verdict["answers"] = compare_answers(study, evaluations, verdict["baseline"])
    sets = sections.calibration_sets(study, calibration_sets)
    largest = {choice: read_extremes(statistics[choice], calibration_sets[choice]) for choice in study.calibrations}
    rows = sections.table(study, verdict)
    verdict["digests"] = digests(study, sets)
    verdict["base_model"] = _base_model(statistics[study.calibrations[0]], verdict["digests"]["base model"])
    write_json(out / "verdict.json", verdict)
    write_json(out / "table.json", rows)
    shown = {
        "sets": sets,
        "nulls": sections.against_null(study.calibrations, calibration_sets),
        "extremes": largest,
        "on_extremes": extremes.summary(largest, {of["name"]: of["samples"] for of in sets}),
        "cost": sections.cost(study, sets, statistics),
    }
    (out / "report.html").write_text(render(study, verdict, rows, shown), encoding="utf-8")
    write_plots(study, verdict, out)


def _base_model(statistics: Path, digest: str) -> dict[str, Any] | None:
    """Name, revision and digest of the base model; None if the statistics do not name the one that was evaluated."""
    origin = read_json(statistics / HEADER).get("base_model")
    return dict(origin) if isinstance(origin, dict) and origin.get("digest") == digest else None
