"""The share of a model that is quantized, in numbers and words, from calibration.json and the weights' headers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from plumbline.base_model.parts import kind_of

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "F8_E4M3": 8}
"""Bits of a value, by safetensors' name of its dtype."""


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


def rows_of(coverage: Mapping[str, Any]) -> dict[str, Any]:
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
