"""Quantizing under any scheme, whether it propagates or not."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from plumbline.activation_stats.totals import Sample
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams


def quantize(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    samples: Sequence[Sample],
    factors: Factors | None = None,
) -> Quantized:
    """The model quantized from `stats`, or by propagating `samples` where the scheme says so."""
    return apply_scheme(model, stats, scheme, lambda: (samples, None), factors)
