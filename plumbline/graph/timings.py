"""How long steps took, as Dagster's history has it: artifacts hold no seconds, or they would differ from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

STEPS = {"selection": "calibration_set", "statistics": "activation_stats", "quantization": "quantized_model"}
"""What a model costs before it is evaluated: its name, and the asset that takes the time."""


def seconds_of(history: dg.DagsterInstance, asset: str, key: str | None) -> float | None:
    """Seconds that the latest materialization took; None where it was not made here (`dvc pull`) or never."""
    import dagster as dg

    record = history.get_latest_data_version_record(dg.AssetKey(asset), partition_key=key)
    event = record.event_log_entry.asset_materialization if record else None
    seconds: Any = event.metadata.get("seconds") if event else None
    return None if seconds is None else float(seconds.value)


def seconds_before(pair: str) -> Mapping[str, float]:
    """Seconds by step of what led to a model; selection and statistics serve all schemes of the choice."""
    from plumbline.graph.instance import instance
    from plumbline.graph.partitions import split_pair

    calibration, _ = split_pair(pair)
    with instance() as history:
        seconds = {
            name: seconds_of(history, asset, pair if asset == "quantized_model" else calibration)
            for name, asset in STEPS.items()
        }
    return {name: value for name, value in seconds.items() if value is not None}
