"""Quantizing under any scheme, whether it propagates or not."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from plumbline.activation_stats.totals import Sample
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagate import propagated
from plumbline.quantized_model.quantize import quantize_model


def quantize(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    samples: Sequence[Sample],
    factors: Factors | None = None,
) -> Quantized:
    """The model quantized from `stats`, or by propagating `samples` where the scheme says so."""
    if scheme.propagate == "quantized":
        return propagated(model, samples, scheme, stats)
    return quantize_model(model, stats, scheme, factors)
