"""Which layers of a model cache keys and values that a scheme can quantize, from the modules alone.

compressed-tensors decides by the form of an attention module whether it quantizes its cache (in transformers, and so
here); where that differs from what the module does, a scheme with `kv_cache` is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Any

from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module
from compressed_tensors.utils import get_head_dim, get_num_attn_heads, get_num_kv_heads
from torch import nn
from transformers import PreTrainedModel

from plumbline.base_model.cache import caching_modules, is_latent, takes_cache
from plumbline.base_model.decoder import decoder_layers
from plumbline.base_model.language import text_config
from plumbline.quantized_model.kv_cache_params import CacheParams

OTHER_USES = re.compile(r"past_key_values?\.(?!update\()(\w+)")
"""Matches what an attention module asks of its cache beside `update`."""
STATE = ("cache_params", "past_key_values")
"""Arguments by which a layer that is no attention takes a state."""


def cached_attention(model: PreTrainedModel, params: CacheParams, dense: bool = False) -> dict[str, nn.Module]:
    """The attention modules whose keys and values are quantized, by name in the model's order.

    Args:
        dense: transformers loads the model decompressed (`loading.loads_dense`).

    Raises:
        ValueError: the model caches a latent or nothing, or transformers could not load or run the result.
    """
    caching = caching_modules(model)
    modules = dict(model.named_modules())
    latent = [name for name, module in modules.items() if is_latent(module)]
    if latent:
        raise ValueError(
            f"kv_cache: {latent[0]} keeps a latent (multi-head latent attention): engines cache that, and not the keys "
            "and values that scales could be computed for; remove kv_cache"
        )
    if not caching:
        raise ValueError(
            f"kv_cache: {type(model).__name__} has no attention whose cache compressed-tensors quantizes (with k_proj "
            "and v_proj, or qkv_proj, and an argument past_key_values); remove kv_cache"
        )
    if other := [name for name in modules if is_cached_attention_module(modules[name]) and name not in caching]:
        raise ValueError(
            f"kv_cache: compressed-tensors takes {other[0]} ({type(modules[other[0]]).__name__}) for an attention that "
            "caches keys and values, and it is none, so transformers could not run the model; remove kv_cache"
        )
    for name, module in caching.items():
        if hasattr(module, "k_scale") or hasattr(module, "v_scale"):
            raise ValueError(
                f"kv_cache: {name} ({type(module).__name__}) has an attribute k_scale or v_scale of its own, which "
                "compressed-tensors overwrites; remove kv_cache"
            )
        if use := OTHER_USES.search(inspect.getsource(type(module).forward)):
            raise ValueError(
                f"kv_cache: {name} ({type(module).__name__}) asks its cache for {use[1]}, which compressed-tensors' "
                "quantized cache does not have when transformers runs without a cache; remove kv_cache"
            )
    if dense:
        raise ValueError(
            f"kv_cache: {type(model).__name__} is decompressed while transformers loads it under this scheme, and its "
            "cache is then not quantized; remove kv_cache (or symmetric: false, if the scheme has it)"
        )
    _require_heads(model, caching, params)
    return caching


def heads_of(model: PreTrainedModel) -> int:
    """Heads of keys and values, in the same number in every layer that `cached_attention` allows a scale per head."""
    return int(get_num_kv_heads(text_config(model)))


def scale_bytes(model: PreTrainedModel, params: CacheParams) -> int:
    """Bytes of the scales in a checkpoint, in float32.

    Raises:
        ValueError: as `cached_attention`.
    """
    per_layer = 2 * (heads_of(model) if params.strategy == "attn_head" else 1)  # of keys, of values
    return 4 * per_layer * len(cached_attention(model, params))


def cache_coverage(model: PreTrainedModel, scales: Collection[str]) -> dict[str, Any]:
    """Number of attention modules with scales, those with a sliding window, and the decoder layers without scales."""
    return {"modules": len(scales), "windows": windows(model), "without": without_cache(model)}


def without_cache(model: PreTrainedModel) -> dict[str, str]:
    """Decoder layer whose cache is not quantized -> reason."""
    caching = caching_modules(model)
    prefix, layers = decoder_layers(model)
    return {
        f"{prefix}.{number}": _why_not(layer)
        for number, layer in enumerate(layers)
        if not any(name.startswith(f"{prefix}.{number}.") for name in caching)
        and not any(module in caching.values() for module in layer.modules())
    }


def windows(model: PreTrainedModel) -> dict[str, int]:
    """Attention module with a sliding window -> its tokens."""
    found = {name: getattr(module, "sliding_window", None) for name, module in caching_modules(model).items()}
    return {name: window for name, window in found.items() if isinstance(window, int)}


def _why_not(layer: nn.Module) -> str:
    if attention := next((m for m in layer.modules() if m is not layer and takes_cache(m)), None):
        return f"{type(attention).__name__}: attends to the keys and values of an earlier layer, and has no scales"
    for module in layer.modules():
        parameters = inspect.signature(module.forward).parameters
        if module is not layer and any(name in parameters for name in STATE):
            return f"{type(module).__name__}: keeps a state of fixed size, and no keys and values"
    return "no attention"


def _require_heads(model: PreTrainedModel, caching: dict[str, nn.Module], params: CacheParams) -> None:
    config = text_config(model)
    try:
        heads = get_num_kv_heads(config)
        get_num_attn_heads(config), get_head_dim(config)
    except Exception as error:  # transformers has an error of its own for values that differ between layers
        raise ValueError(
            f"kv_cache: compressed-tensors cannot tell the heads of {type(model).__name__} from its configuration "
            f"({str(error).splitlines()[0][:120]}), so transformers could not load the model; remove kv_cache"
        ) from error
    if params.strategy == "tensor":
        return
    for name, module in caching.items():
        width, head = getattr(getattr(module, "k_proj", None), "out_features", None), getattr(module, "head_dim", None)
        if width is not None and head is not None and width != heads * head:
            raise ValueError(
                f"kv_cache.strategy attn_head: {name} has {width // head} heads of keys, and config.json says {heads} "
                "for all layers, which is what compressed-tensors loads; write strategy: tensor"
            )
