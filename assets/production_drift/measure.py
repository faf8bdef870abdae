"""Has production moved away from what the champion was calibrated on? The panel of representativeness, then and now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from assets.artifact import read_json
from assets.calibration_set.pool import Sources
from assets.calibration_set.reader import read_calibration_set
from assets.calibration_set.representativeness import representativeness
from assets.calibration_set.strategies.base import Selection
from assets.production_drift.params import DriftParams
from assets.raw_corpus.document import PRODUCTION


def measure_drift(calibration_set: Path, sources: Sources, params: DriftParams) -> dict[str, Any]:
    """Compare a calibration set with today's production, and with how far it was when it was chosen.

    Args:
        calibration_set: the champion's, as it was made.
        sources: samples and features with today's production in them; random draws come from their pool.

    Returns:
        JSON-able: `drifted`; `metrics`, those that count, with value and ratio now and then; `sentence`, which names
        them; `p_value`; `production_samples`.
    """
    pool = sources.pool()
    found = 0 if pool.production is None else len(pool.production)
    if found < params.min_samples:
        sentence = f"{found} production samples, {params.min_samples} are asked (drift.min_samples): nothing is said."
        return {"drifted": False, "metrics": {}, "sentence": sentence, "p_value": None, "production_samples": found}
    rows = read_calibration_set(calibration_set)
    now = representativeness(sources, pool, selection_of(rows, pool.table["sample_id"]), rows)
    return {"production_samples": found, **judge(now, read_json(calibration_set / "representativeness.json"), params)}


def selection_of(rows: pa.Table, pool_ids: pa.ChunkedArray) -> Selection:
    """A stored set as a selection from today's pool; a sample that is not in it counts as written, without domain."""
    at = {sample: row for row, sample in enumerate(pool_ids.to_pylist())}
    names = rows["sample_id"].to_pylist()
    tokens = rows["input_ids"].combine_chunks()
    written = {
        position: np.array(tokens[position].values, dtype=np.int32)
        for position, name in enumerate(names)
        if name not in at
    }
    return Selection(np.array([at.get(name, -1) for name in names], dtype=np.int64), [{}] * len(names), written=written)


def judge(now: Mapping[str, Any], then: Mapping[str, Any], params: DriftParams) -> dict[str, Any]:
    """Which metrics are flagged now and were not, or are flagged still and have grown.

    Args:
        now, then: what `representativeness` returned; one that knew no production counts as nothing flagged.
    """
    block = now["references"][PRODUCTION]
    before = then.get("references", {}).get(PRODUCTION, {"flagged": [], "metrics": {}})
    metrics = {}
    for name in block["flagged"]:
        value, old = block["metrics"][name], before["metrics"].get(name, {})
        ratio, was = value["ratio"], old.get("ratio")
        new = name not in before["flagged"]
        grown = ratio is not None and was is not None and ratio >= params.growth * was
        if new or grown:
            metrics[name] = {
                "value": value["value"],
                "ratio": ratio,
                "then": {key: old.get(key) for key in ("value", "ratio")},
                "sentence": value["sentence"],
            }
    drifted = bool(metrics) and block["p_value"] <= params.level
    p = f"p = {block['p_value']:.2g}"
    if drifted:
        labels = ", ".join(block["metrics"][name]["label"] for name in list(metrics)[:3])
        sentence = f"Production has moved from the champion's calibration set in {labels} ({p})."
    elif metrics:
        sentence = f"Production may be moving, not beyond drift.level = {params.level:g} ({p})."
    else:
        sentence = f"Production is as close to the champion's calibration set as it was ({p})."
    return {"drifted": drifted, "metrics": metrics, "sentence": sentence, "p_value": block["p_value"]}
