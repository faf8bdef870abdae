"""Flipped answers in the report: McNemar's test against the base model and against the baseline choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from plumbline.artifact import read_json, write_table
from plumbline.calibration_report.answers import compare_answers, sentences
from plumbline.calibration_report.bootstrap import holm
from plumbline.calibration_report.study import read_study
from tests.helpers.calibration_report import CALIBRATIONS, SCHEMES, Disk, add_items, build_report


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    only = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


def test_every_model_is_tested_on_the_same_items(disk: Disk, tmp_path: Path) -> None:
    tables = add_items(disk)
    study = read_study(CALIBRATIONS, SCHEMES, disk.evaluations)
    rows = compare_answers(study, disk.evaluations, "random")
    correct = {pair: of["correct_quantized"].to_numpy() for pair, of in tables.items()}
    base = tables["random-w4a16-rtn"]["correct_base"].to_numpy()
    against_base = [p_value(base, correct[f"{row['choice']}-{row['scheme']}"]) for row in rows]
    assert [row["p_value"] for row in rows] == pytest.approx(against_base)
    assert [row["p_adjusted"] for row in rows] == pytest.approx(holm(against_base))
    rivals = [row for row in rows if row["choice"] != "random"]
    paired = [
        p_value(correct[f"random-{row['scheme']}"], correct[f"{row['choice']}-{row['scheme']}"]) for row in rivals
    ]
    assert [row["against_baseline"]["p_value"] for row in rivals] == pytest.approx(paired)
    assert [row["against_baseline"]["p_adjusted"] for row in rivals] == pytest.approx(holm(paired))
    assert all(row["against_baseline"] is None for row in rows if row["choice"] == "random")

    said = sentences(rows, 0.95)
    assert said[0].startswith("Of 80 multiple-choice items, quantization flips 5.0 to ")
    assert said[1] == "The share of correct answers differs from the base model's for off-domain-w3a16-gptq."
    assert said[2] == "It differs from the baseline choice's for off-domain under w3a16-gptq."
    summary = build_report(disk, tmp_path / "out")
    assert summary["on_answers"] == said
    assert read_json(tmp_path / "out" / "verdict.json")["answers"] == rows
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Answers</h2>" in page and said[1] in page.replace("&#39;", "'")


def test_without_items_nothing_is_said_and_other_items_are_refused(disk: Disk, tmp_path: Path) -> None:
    assert build_report(disk, tmp_path / "without")["on_answers"] == []
    assert "<h2>Answers</h2>" not in (tmp_path / "without" / "report.html").read_text(encoding="utf-8")
    tables = add_items(disk)
    pair = "chosen-w4a16-gptq"
    write_table(disk.evaluations[pair] / "items.parquet", tables[pair].slice(1))
    with pytest.raises(ValueError, match=f"{pair} answered other multiple-choice items"):
        build_report(disk, tmp_path / "out")
