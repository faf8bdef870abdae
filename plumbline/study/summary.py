"""What the UI shows of a study, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.calibration_report.wording import percent, signed


def summary(folder: Path) -> dict[str, Any]:
    """Headline, sentences, a row per comparison, and counts."""
    verdict = read_json(folder / "verdict.json")
    called = [comparison["verdict"] for comparison in verdict["comparisons"]]
    models = pq.read_table(folder / "documents.parquet", columns=["scheme", "n", "rule", "draw"])
    return {
        "headline": verdict["headline"],
        "sentences": verdict["sentences"],
        "on_controls": verdict["on_controls"],
        "recommendations": [recommendation["sentence"] for recommendation in verdict["recommendations"]],
        "sizes": [curve["sentence"] for curve in verdict["size_curve"]],
        "representativeness": [scheme["sentence"] for scheme in verdict["representativeness"]["by_scheme"]],
        "comparisons": [_row(comparison) for comparison in verdict["comparisons"]],
        "controls": [_row(comparison) for comparison in verdict["controls"]],
        "models": models.group_by(models.column_names).aggregate([]).num_rows,
        "documents": verdict["documents"],
        "tokens": verdict["tokens"],
        "better": called.count("better"),
        "worse": called.count("worse"),
        "no_difference_detected": called.count("no difference detected"),
    }


def _row(c: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scheme": c["scheme"],
        "n": c["n"],
        "rule": c["rule"],
        "kl_mean": c["kl_mean"],
        "kl_mean_baseline": c["kl_mean_baseline"],
        "difference": signed(c["difference"]),
        "interval": "" if c["low"] is None else f"{signed(c['low'])} to {signed(c['high'])}",
        "p_adjusted": c["p_adjusted"],
        "verdict": c["verdict"],
        "could_see": "" if c["detectable"] is None else percent(c["detectable"]),
        "draws_needed": c["draws_needed"] or "",
        "spread_ratio": "" if c["spread_ratio"] is None else round(c["spread_ratio"]["estimate"], 2),
    }
