"""Durations of steps, from Dagster's history: in artifacts they would make the bytes differ from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

STEPS = {"selection": "calibration_set", "statistics": "activation_stats", "quantization": "quantized_model"}
"""Steps before the evaluation: name of the step -> asset whose duration it is."""


def seconds_of(history: dg.DagsterInstance, asset: str, key: str | None) -> float | None:
    """Duration of the latest materialization in seconds; None if it was not made here (`dvc pull`) or never."""
    import dagster as dg

    record = history.get_latest_data_version_record(dg.AssetKey(asset), partition_key=key)
    event = record.event_log_entry.asset_materialization if record else None
    seconds: Any = event.metadata.get("seconds") if event else None
    return None if seconds is None else float(seconds.value)


def seconds_before(pair: str) -> Mapping[str, float]:
    """Seconds by step before the evaluation of a pair; all schemes of a choice share selection and statistics."""
    from plumbline.graph.instance import instance
    from plumbline.graph.partitions import split_pair

    calibration, _ = split_pair(pair)
    with instance() as history:
        seconds = {
            name: seconds_of(history, asset, pair if asset == "quantized_model" else calibration)
            for name, asset in STEPS.items()
        }
    return {name: value for name, value in seconds.items() if value is not None}
