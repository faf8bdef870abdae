"""What the UI shows of a calibration_report, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json
from plumbline.calibration_report.answers import sentences
from plumbline.calibration_report.wording import signed


def summary(folder: Path) -> dict[str, Any]:
    """Headline, sentences, a row per model, and counts."""
    verdict = read_json(folder / "verdict.json")
    called = [comparison["verdict"] for comparison in verdict["comparisons"]]
    return {
        "headline": verdict["headline"],
        "advice": [one["sentence"] for one in verdict["advice"]],
        "caveat": verdict["caveat"],
        "sentences": verdict["sentences"],
        "disagreements": verdict["disagreements"],
        "on_answers": sentences(verdict["answers"], verdict["confidence"]),
        "models": [_row(row) for row in read_json(folder / "table.json")],
        "documents": verdict["documents"],
        "tokens": verdict["tokens"],
        "better": called.count("better"),
        "worse": called.count("worse"),
        "no_difference_detected": called.count("no difference detected"),
        "identical": called.count("identical"),
    }


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
