"""McNemar's test on the answers to multiple-choice items that quantization changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from plumbline.calibration_report.bootstrap import holm
from plumbline.calibration_report.mcnemar import mcnemar
from plumbline.calibration_report.study import Study
from plumbline.calibration_report.wording import join


def compare_answers(study: Study, evaluations: Mapping[str, Path], baseline: str) -> list[dict[str, Any]]:
    """Compare every model with the base model and with the model of the baseline choice, on the same items.

    Two families of tests, each with Holm's correction: quantized against base model, and choice against baseline.

    Args:
        study: its metrics have `flips` if items were evaluated.
        evaluations: folder of evaluation by pair, `CALIBRATION-SCHEME`.

    Returns:
        Per scheme and choice the figures of `flips` in metrics.json, `p_value` and `p_adjusted` of the accuracy against
        the base model's, and `against_baseline` (None for the baseline itself): `only_baseline`, `only_choice` (items
        that only the one answers correctly), `p_value`, `p_adjusted`. Empty where no items were evaluated.

    Raises:
        ValueError: some models answered other items than others.
    """
    pairs = [(choice, scheme) for scheme in study.schemes for choice in study.calibrations]
    if not any("flips" in study.metrics[pair] for pair in pairs):
        return []
    correct = _correct(pairs, evaluations)
    rows = []
    for choice, scheme in pairs:
        flips = study.metrics[choice, scheme]["flips"]
        p = mcnemar(flips["correct_to_incorrect"], flips["incorrect_to_correct"])
        rows.append({"scheme": scheme, "choice": choice, **flips, "p_value": p, "against_baseline": None})
        if choice != baseline:
            ours, theirs = correct[choice, scheme], correct[baseline, scheme]
            only = {"only_baseline": int((theirs & ~ours).sum()), "only_choice": int((ours & ~theirs).sum())}
            rows[-1]["against_baseline"] = {**only, "p_value": mcnemar(*only.values())}
    for family in (rows, [row["against_baseline"] for row in rows if row["against_baseline"]]):
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_adjusted"] = p
    return rows


def _correct(pairs: Sequence[tuple[str, str]], evaluations: Mapping[str, Path]) -> dict[tuple[str, str], np.ndarray]:
    """Which items each quantized model answers correctly, bool (I,), in one order."""
    correct: dict[tuple[str, str], np.ndarray] = {}
    items = None
    for choice, scheme in pairs:
        path = evaluations[f"{choice}-{scheme}"] / "items.parquet"
        table = pq.read_table(path, columns=["item_id", "correct_quantized"]) if path.is_file() else None
        if table is not None and items is None:
            items = table["item_id"]
        if table is None or not table["item_id"].equals(items):
            raise ValueError(
                f"{choice}-{scheme} answered other multiple-choice items than the rest, or none; run `plumbline run`, "
                "which evaluates all on the same"
            )
        correct[choice, scheme] = table["correct_quantized"].to_numpy()
    return correct


def sentences(rows: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """Sentences on models that lost or gained accuracy, and on choices that differ from the baseline."""
    if not rows:
        return []
    alpha = 1 - confidence
    changed = [row for row in rows if row["p_adjusted"] <= alpha]
    differing = [row for row in rows if row["against_baseline"] and row["against_baseline"]["p_adjusted"] <= alpha]
    shares = sorted(100 * row["flips"] for row in rows)
    texts = [
        f"Of {rows[0]['items']} multiple-choice items, quantization flips {shares[0]:.1f} to {shares[-1]:.1f} % "
        "between correct and incorrect."
    ]
    if changed:
        names = join([f"{row['choice']}-{row['scheme']}" for row in changed])
        texts.append(f"The share of correct answers differs from the base model's for {names}.")
    else:
        texts.append("For no model was the share of correct answers seen to differ from the base model's.")
    if differing:
        names = join([f"{row['choice']} under {row['scheme']}" for row in differing])
        texts.append(f"It differs from the baseline choice's for {names}.")
    else:
        texts.append("Between choices, no difference in the share of correct answers was detected.")
    return texts
