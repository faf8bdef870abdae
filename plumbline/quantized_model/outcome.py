"""What quantizing a model leaves beside its files, for calibration.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plumbline.quantized_model.kv_cache import CacheScales
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.record import layer_record


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a model, without its weights.

    Attributes:
        files: names of the weight files, sorted.
        layers: entries of calibration.json by name of a matrix, in the model's order.
        notes, left, cache: as in `Quantized`.
        loads: the result of the check that the folder loads.
    """

    files: list[str]
    layers: dict[str, dict[str, Any]]
    notes: dict[str, Any]
    left: dict[str, str]
    cache: dict[str, CacheScales]
    loads: dict[str, Any]


def outcome_of(quantized: Quantized, files: list[str], loads: dict[str, Any]) -> Outcome:
    """The outcome of a model that was quantized in memory."""
    layers = {name: layer_record(layer) for name, layer in quantized.layers.items()}
    return Outcome(files, layers, quantized.notes, quantized.left, quantized.cache, loads)
