"""Production drift: the representativeness of the champion's calibration set when it was chosen, and today."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.artifact import read_json
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.reader import read_calibration_set
from plumbline.calibration_set.representativeness.compare import representativeness
from plumbline.calibration_set.strategies.base import Selection
from plumbline.production_drift.params import DriftParams
from plumbline.raw_corpus.document import PRODUCTION


def measure_drift(calibration_set: Path, sources: Sources, params: DriftParams) -> dict[str, Any]:
    """Compare a calibration set with today's production, and with its distance when it was chosen.

    Args:
        calibration_set: the champion's, as it was built.
        sources: samples and features with today's production; random draws are from their pool.

    Returns:
        JSON-able: `drifted`; `metrics`, the drifted ones with value and ratio now and then, and whether the pool
        drifted; `sentence`, which names them; `p_value` of the set; `production_samples`.
    """
    pool = sources.pool()
    count = 0 if pool.production is None else len(pool.production)
    if count < params.min_samples:
        sentence = f"{count} production samples, {params.min_samples} are asked (drift.min_samples): nothing is said."
        return {"drifted": False, "metrics": {}, "sentence": sentence, "p_value": None, "production_samples": count}
    rows = read_calibration_set(calibration_set)
    now = representativeness(sources, pool, selection_of(rows, pool.table["sample_id"]), rows)
    return {"production_samples": count, **judge(now, read_json(calibration_set / "representativeness.json"), params)}


def selection_of(rows: pa.Table, pool_ids: pa.ChunkedArray) -> Selection:
    """A stored set as a selection from today's pool; samples that are not in it count as written, without domain."""
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
    """Decide whether production has moved from the champion's set, or from the whole pool.

    The set is compared with random draws, so if production moves to where the pool has no samples, it is as far from
    every draw as from the set. The draws show that: today's are farther from production than the earlier ones.

    Args:
        now, then: results of `representativeness`; without production, nothing was flagged then.
    """
    block = now["references"][PRODUCTION]
    before = then.get("references", {}).get(PRODUCTION, {"flagged": [], "metrics": {}})
    left = _left_by_the_set(block, before, params)
    lacking = [name for name in _left_by_the_pool(now, then, params) if name not in left]
    moved = bool(left) and block["p_value"] <= params.level
    p = f"p = {block['p_value']:.2g}"
    texts = []
    if moved:
        texts.append(f"Production has moved from the champion's calibration set in {_labels(block, left)} ({p}).")
    elif left:
        texts.append(f"Production may be moving, not beyond drift.level = {params.level:g} ({p}).")
    elif not lacking:
        texts.append(f"Production is as close to the champion's calibration set as it was ({p}).")
    if lacking:
        texts.append(
            f"Production has moved from all texts to choose from in {_labels(block, lacking)}: no random set comes as "
            "near as random sets did; add such texts to the corpus."
        )
    metrics = {}
    for name in [*left, *lacking]:
        value, old = block["metrics"][name], before["metrics"].get(name, {})
        current = {key: value[key] for key in ("value", "ratio", "sentence")}
        metrics[name] = {**current, "then": {key: old.get(key) for key in ("value", "ratio")}, "pool": name in lacking}
    return {
        "drifted": moved or bool(lacking),
        "metrics": metrics,
        "sentence": " ".join(texts),
        "p_value": block["p_value"],
    }


def _left_by_the_set(block: Mapping[str, Any], before: Mapping[str, Any], params: DriftParams) -> list[str]:
    """Metrics that are newly flagged, or are still flagged and have grown."""
    names = []
    for name in block["flagged"]:
        ratio, was = block["metrics"][name]["ratio"], before["metrics"].get(name, {}).get("ratio")
        grown = ratio is not None and was is not None and ratio >= params.growth * was
        if name not in before["flagged"] or grown:
            names.append(name)
    return names


def _left_by_the_pool(now: Mapping[str, Any], then: Mapping[str, Any], params: DriftParams) -> list[str]:
    """Metrics in which today's random draws are farther from production than the earlier ones, except for extremes.

    The spread of draws of n samples against m samples of production leaves out the variance of the sample of
    production. The two vary as 1/n and 1/m, so p05 and p95 are moved sqrt(1 + n/m) times as far from the median. If
    there was no production sample, the tuning split serves instead. Distances to a small sample are larger, so there is
    no result if today's sample has less than half the size of the earlier one.
    """
    block = now["references"][PRODUCTION]
    before = then.get("references", {}).get(PRODUCTION) or now["references"].get("tuning")
    if before is None or block["reference_samples"] < before["reference_samples"] / 2:
        return []
    names = []
    for name, value in block["metrics"].items():
        if name not in before["metrics"]:
            continue
        today, was = value["null"], before["metrics"][name]["null"]
        nearest = today["median"] - _widened(block) * (today["median"] - today["p05"])
        farthest = was["median"] + _widened(before) * (was["p95"] - was["median"])
        if nearest > farthest and today["median"] >= params.growth * was["median"]:
            names.append(name)
    return names


def _widened(block: Mapping[str, Any]) -> float:
    return math.sqrt(1 + block["samples"] / block["reference_samples"])


def _labels(block: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(block["metrics"][name]["label"] for name in names[:3])
