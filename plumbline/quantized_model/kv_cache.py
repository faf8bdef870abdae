"""FP8 scales of keys and values, from what attention caches: after rotation and norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline import histogram as histograms
from plumbline.base_model.cache import KEYS, VALUES, hand_cache
from plumbline.base_model.names import Names
from plumbline.histogram import Histogram
from plumbline.quantized_model.checkpoint_names import names_in_checkpoint
from plumbline.quantized_model.folding import scaled_site
from plumbline.quantized_model.grid import Grid, symmetric_scale
from plumbline.quantized_model.input_statistics import InputStatistics, Statistics
from plumbline.quantized_model.kv_cache_layers import cached_attention, heads_of
from plumbline.quantized_model.kv_cache_params import CacheParams

FP8 = Grid(8, per_tensor=True, type="float")
"""The grid of keys and values, whose scale may be a head's."""


@dataclass(frozen=True, eq=False)
class CacheScales:
    """The scales of an attention module's keys and values.

    Attributes:
        keys, values: (1,), or (heads, 1, 1) with a scale per head; in the model's dtype, as transformers computes.
    """

    keys: Tensor
    values: Tensor


def require_cached(stats: Statistics, names: Mapping[str, nn.Module], params: CacheParams) -> None:
    """Refuse statistics without the keys and values that the scheme reads.

    Raises:
        ValueError: names the layer, and what to do.
    """
    if not params.reads:
        return
    for name in names:
        if name + KEYS not in stats.sites or name + VALUES not in stats.sites:
            raise ValueError(
                f"the statistics hold no keys and values of {name}, which kv_cache reads: write statistics: {{cache: "
                "true} in params.yaml and run activation_stats again (one more forward pass)"
                if not stats.settings.cache
                else f"no token of the calibration set reached the cache of {name}, so there is no range for it: "
                "remove kv_cache, or write kv_cache: {range: unit}"
            )


def cache_scales(
    model: PreTrainedModel,
    stats: Statistics,
    params: CacheParams,
    rows: Mapping[str, Tensor],
    device: torch.device | None = None,
    wanted: Names = lambda name: True,
) -> dict[str, CacheScales]:
    """The scales of every attention module that caches keys and values, by its name.

    Args:
        stats: of the base model.
        rows: Linear -> divisors of its output channels, which a transform folded in.
        device: of the scales; None: the model's.
        wanted: selects attention modules by name.

    Raises:
        ValueError: as `cached_attention` and `require_cached`.
    """
    device = device or model.device
    modules = cached_attention(model, params)
    require_cached(stats, modules, params)
    modules = {name: module for name, module in modules.items() if wanted(name)}
    heads = heads_of(model) if params.strategy == "attn_head" else 1
    shape = (heads, 1, 1) if params.strategy == "attn_head" else (1,)
    if params.range == "unit":
        one = torch.ones(shape, dtype=model.dtype, device=device)
        return {name: CacheScales(one, one) for name in modules}

    def scale(site: InputStatistics) -> Tensor:
        return scale_of(largest_of(site, heads, params), model.dtype).view(shape).to(device)

    return {
        name: CacheScales(scale(stats.sites[name + KEYS]), scale(_folded(stats.sites[name + VALUES], name, rows)))
        for name in modules
    }


def largest_of(site: InputStatistics, heads: int, params: CacheParams) -> Tensor:
    """The largest magnitude that each head's scale covers, (heads,) float64.

    Args:
        site: of keys or values; its channels are the heads one after the other.
        heads: 1 for a range over all heads.
    """
    whole = torch.maximum(-site.min, site.max).double().view(heads, -1).amax(1)
    if params.range == "minmax":
        return whole
    whole_site = site.histogram
    if whole_site is None:
        raise ValueError("the statistics hold no histogram, which kv_cache.range percentile needs: use range: minmax")
    counts = whole_site.counts.view(heads, -1, whole_site.counts.shape[1]).sum(1)
    by_head = Histogram(counts, whole_site.first, whole_site.mantissa_bits, whole_site.dtype)
    inner = histograms.quantile(by_head, params.percentile / 100, per_channel=True, absolute=True)
    return torch.minimum(inner, whole)


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """largest / 448 in `dtype`, as compressed-tensors computes it; where that is zero, the smallest step of `dtype`."""
    return symmetric_scale(largest.to(dtype), FP8, dtype)


def round_states(x: Tensor, scale: Tensor) -> Tensor:
    """Round keys or values (batch, heads, tokens, head width) to the grid of E4M3 and back, all in x's dtype."""
    return FP8.numbers.round_(x / scale) * scale


def round_cache(model: nn.Module, scales: Mapping[str, CacheScales]) -> None:
    """Make a model attend to rounded keys and values, in place."""
    for name, own in scales.items():
        hand_cache(model.get_submodule(name), _rounding(own))


def _rounding(scales: CacheScales) -> Any:
    def exchange(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return (
            round_states(keys, scales.keys.to(keys.device)),
            round_states(values, scales.values.to(values.device)),
        )

    return exchange


def cache_tensors(model: PreTrainedModel, scales: Mapping[str, CacheScales]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: `<attention>.k_scale` and `.v_scale`, float32, as vLLM reads them."""
    stored = names_in_checkpoint(model, scales)
    return {
        f"{stored[name]}.{part}_scale": scale.float().cpu().contiguous().clone()
        for name, own in scales.items()
        for part, scale in (("k", own.keys), ("v", own.values))
    }


def cache_args(params: CacheParams) -> QuantizationArgs:
    """The `kv_cache_scheme` of a `quantization_config`."""
    return QuantizationArgs(
        num_bits=params.bits,
        type=QuantizationType.FLOAT,
        strategy=QuantizationStrategy(params.strategy),
        symmetric=True,
        dynamic=False,
    )


def cache_record(scales: Mapping[str, CacheScales]) -> dict[str, Any]:
    """The scales by attention module, for calibration.json: a number, or a list with one per head."""

    def plain(scale: Tensor) -> Any:
        values = scale.float().flatten().tolist()
        return values if scale.dim() > 1 else values[0]

    return {name: {"k": plain(own.keys), "v": plain(own.values)} for name, own in scales.items()}


def recorded_cache(
    record: Mapping[str, Any], dtype: torch.dtype, device: torch.device | None = None
) -> dict[str, CacheScales]:
    """The scales that `cache_record` recorded."""

    def read(value: float | list[float]) -> Tensor:
        scale = torch.tensor(value, dtype=torch.float32, device=device).to(dtype)
        return scale.view(-1, 1, 1) if isinstance(value, list) else scale.view(1)

    return {name: CacheScales(read(own["k"]), read(own["v"])) for name, own in record.items()}


def _folded(site: InputStatistics, name: str, rows: Mapping[str, Tensor]) -> InputStatistics:
    """The statistics of an attention module's values after a transform divided the rows that compute them."""
    divisors = rows.get(f"{name}.v_proj", rows.get(f"{name}.qkv_proj"))
    if divisors is None:
        return site
    return scaled_site(site, divisors[-site.width :])  # in a fused projection the values come last
