"""Quantizing a model under any scheme, whether it runs the calibration set again or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from plumbline.activation_stats.totals import Masks, Sample
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.kv_cache import cache_scales, require_cached
from plumbline.quantized_model.kv_cache_layers import cached_attention
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagate import propagated
from plumbline.quantized_model.quantize import quantize_model

Calibration = Callable[[], tuple[Sequence[Sample], Masks | None]]
"""Reads the samples of the calibration set and the masks of those in which not all tokens count."""


def apply_scheme(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    calibration: Calibration,
    factors: Factors | None = None,
    *,
    errors: bool = True,
    progress: bool = False,
) -> Quantized:
    """The model, quantized from the statistics of a calibration set.

    Args:
        model: the base model; not changed.
        calibration: called only if the scheme runs the set again (`propagate: quantized`).
        factors: cache of Hessian factors, shared between the schemes of a calibration set.
        errors: compute the relative error of every layer, which is reported and influences nothing.
        progress: say how far it is.

    Raises:
        ValueError: the scheme does not suit the model or the statistics.
    """
    if scheme.kv_cache is not None:  # before the work
        require_cached(stats, cached_attention(model, scheme.kv_cache), scheme.kv_cache)
    if scheme.propagate == "quantized":
        samples, masks = calibration()
        quantized = propagated(model, samples, scheme, stats, masks, progress=progress)
    else:
        quantized = quantize_model(model, stats, scheme, factors, errors=errors, progress=progress)
    if scheme.kv_cache is None:
        return quantized
    return replace(quantized, cache=cache_scales(model, stats, scheme.kv_cache, quantized.rows))
