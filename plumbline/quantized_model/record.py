"""The entry of a layer in calibration.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.quantized_model.grid import Grid
    from plumbline.quantized_model.layer import Layer


def layer_record(layer: Layer) -> dict[str, Any]:
    """The entry of a layer in calibration.json, without values that are None, zero or false."""
    record: dict[str, Any] = {"bits": layer.weight.bits, "group_size": layer.group_size}
    extra = {
        "format": _format(layer.weight.grid),
        "block": layer.weight.grid.block,
        "per_tensor": layer.weight.grid.per_tensor or None,
        "zero_points": layer.weight.zero_point is not None or None,
        "damping": layer.damping,
        "dead_channels": layer.dead or None,
        "fallback": layer.fallback,
        "relative_error": None if layer.error is None else float(f"{layer.error:.6g}"),
    }
    return record | {key: value for key, value in extra.items() if value is not None}


def granularity(layer: Mapping[str, Any]) -> str:
    """How many weights share a scale, in words or as a number.

    Args:
        layer: entry of calibration.json.
    """
    if block := layer.get("block"):
        return f"blocks of {block[0]} x {block[1]}"
    return "per tensor" if layer.get("per_tensor") else str(layer["group_size"] or "per channel")


def _format(grid: Grid) -> str | None:
    """The name of the numbers and scales; None for integers."""
    if grid.type == "int":
        return None
    return {"model": "fp8", "e4m3": "nvfp4", "e8m0": "mxfp4" if grid.bits == 4 else "mxfp8"}[grid.scale_format]
