"""Summary of a quantized_model for the UI, from its files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from plumbline.artifact import read_json
from plumbline.quantized_model.record import granularity
from plumbline.quantized_model.share import bits_per_weight, rows_of, sentence


def summary(folder: Path) -> dict[str, Any]:
    """The share of the weights that is quantized, sizes, bits per weight, layer errors, fallbacks, a row per layer."""
    record = read_json(folder / "calibration.json")
    layers, notes = record["layers"], record["notes"]
    weight_files = [file for file in record["model"] if file.endswith(".safetensors")]
    errors = {name: layer["relative_error"] for name, layer in layers.items() if "relative_error" in layer}
    worst = max(errors, key=errors.__getitem__, default=None)
    coverage = rows_of(record["coverage"])
    bits = bits_per_weight(folder, weight_files, record["coverage"])
    return {
        "sentence": sentence(coverage, bits),
        "bytes": sum((folder / file).stat().st_size for file in weight_files),
        **coverage,
        "bits_per_weight": bits,
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
    }


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
