"""Summary of a quantized_model for the UI, from its files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open

from plumbline.artifact import read_json
from plumbline.quantized_model.record import granularity

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "F8_E4M3": 8}
"""Bits of a value, by safetensors' name of its dtype."""


def summary(folder: Path) -> dict[str, Any]:
    """Sizes, bits per weight, layer errors, fallbacks, modules in full precision, and a row per layer."""
    record = read_json(folder / "calibration.json")
    layers, notes = record["layers"], record["notes"]
    weight_files = [file for file in record["model"] if file.endswith(".safetensors")]
    errors = {name: layer["relative_error"] for name, layer in layers.items() if "relative_error" in layer}
    worst = max(errors, key=errors.__getitem__, default=None)
    return {
        "bytes": sum((folder / file).stat().st_size for file in weight_files),
        "bits_per_weight": bits_per_weight(folder, weight_files, layers),
        "quantized_layers": len(layers),
        "bits": sorted({layer["bits"] for layer in layers.values()}),
        "group_sizes": sorted(set(map(granularity, layers.values()))),
        "zero_points": any("zero_points" in layer for layer in layers.values()),
        "mean_layer_error": fmean(errors.values()) if errors else None,
        "max_layer_error": errors[worst] if worst else None,
        "worst_layer": worst,
        "fallbacks": record["fallbacks"],
        "remarks": notes.get("remarks"),
        "mixed": {key: value for key, value in notes.get("mixed", {}).items() if key != "bits"},
        "transform": _transform(notes),
        "propagate": notes.get("propagate"),
        "layers": [_row(name, layers[name]) for name in sorted(layers, key=_in_order)],
        "starved": record["starved"],
        "experts_in_full_precision": record["experts_in_full_precision"],
    }


def bits_per_weight(folder: Path, files: Iterable[str], layers: Mapping[str, Any]) -> float:
    """Bits on disk per quantized weight: codes, scales, zero points and shapes. Reads headers, no tensor of weights."""
    bits = weights = 0
    for file in files:
        with safe_open(folder / file, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                layer, _, tensor = key.rpartition(".")
                if layer not in layers or tensor == "bias":
                    continue
                stored = tensors.get_slice(key)
                size = math.prod(stored.get_shape())
                bits += size * BITS[stored.get_dtype()]
                if tensor == "weight_shape":
                    weights += math.prod(tensors.get_tensor(key).tolist())
                elif tensor == "weight":  # not packed
                    weights += size
    return round(bits / weights, 4)


def _row(name: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer": name,
        "bits": layer["bits"],
        "group_size": granularity(layer),
        "relative_error": layer.get("relative_error", ""),
        "damping": layer.get("damping", ""),
        "dead_channels": layer.get("dead_channels", 0),
        "fallback": layer.get("fallback", ""),
    }


def _transform(notes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The facts of the transform without the figures per site, which are in calibration.json."""
    if "transform" not in notes:
        return None
    facts = notes["transform"]
    return {key: value for key, value in facts.items() if not isinstance(value, dict)} | {
        "unfolded": dict(Counter(facts["unfolded"].values()))
    }


def _in_order(layer: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", layer)]
