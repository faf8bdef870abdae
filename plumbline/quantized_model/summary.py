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
from plumbline.base_model.parts import kind_of
from plumbline.quantized_model.record import granularity

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "F8_E4M3": 8}
"""Bits of a value, by safetensors' name of its dtype."""


def summary(folder: Path) -> dict[str, Any]:
    """The share of the weights that is quantized, sizes, bits per weight, layer errors, fallbacks, a row per layer."""
    record = read_json(folder / "calibration.json")
    layers, notes = record["layers"], record["notes"]
    weight_files = [file for file in record["model"] if file.endswith(".safetensors")]
    errors = {name: layer["relative_error"] for name, layer in layers.items() if "relative_error" in layer}
    worst = max(errors, key=errors.__getitem__, default=None)
    coverage = _coverage(record["coverage"])
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


def sentence(coverage: Mapping[str, Any], bits: float) -> str:
    """What share of the model is quantized, in a sentence.

    Args:
        coverage: with `share` and `share_of_all`.
        bits: per weight of the whole model.
    """
    share, of_all = 100 * coverage["share"], 100 * coverage["share_of_all"]
    return (
        f"{share:.1f} % of the weights in matrices outside embeddings, head, routers and towers are quantized, which "
        f"is {of_all:.1f} % of all weights; the model takes {bits:.2f} bits per weight."
    )


def bits_per_weight(folder: Path, files: Iterable[str], coverage: Mapping[str, Any]) -> float:
    """Bits on disk per weight of the whole model: codes, scales, zero points, and what is in full precision.

    Reads headers, no tensor.

    Args:
        files: names of the weight files.
        coverage: of calibration.json.
    """
    bits = 0
    for file in files:
        with safe_open(folder / file, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                stored = tensors.get_slice(key)
                bits += math.prod(stored.get_shape()) * BITS[stored.get_dtype()]
    return round(bits / sum(kind["weights"] for kind in coverage["kinds"].values()), 4)


def _coverage(coverage: Mapping[str, Any]) -> dict[str, Any]:
    """The share, a row per kind, and the matrices in full precision by kind and reason."""
    rows = [
        {"kind": kind, **counts, "share": round(counts["quantized"] / counts["weights"], 4)}
        for kind, counts in coverage["kinds"].items()
        if counts["weights"]
    ]
    left = Counter((kind_of(name), reason) for name, reason in coverage["left"].items())
    rows_left = sorted(left.items(), key=lambda row: (-row[1], row[0]))
    return {
        "share": coverage["share"],
        "share_of_all": coverage["share_of_all"],
        "kinds": rows,
        "left": [{"kind": kind, "matrices": n, "why": reason} for (kind, reason), n in rows_left],
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
