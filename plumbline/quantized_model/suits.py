"""Whether a scheme suits a model, from the modules alone: weights may be on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from plumbline.base_model.matrices import Matrix
from plumbline.quantized_model.expert_layout import require_readable_experts
from plumbline.quantized_model.kv_cache_layers import cached_attention
from plumbline.quantized_model.loading import loads_dense
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import format_of, layer_group_sizes, quantizable_matrices, require_widths


@dataclass(frozen=True, eq=False)
class Suited:
    """What a scheme does with a model.

    Attributes:
        matrices: that it quantizes, by name in the model's order.
        sizes: group size of each.
        dense: transformers loads the result decompressed (`loading.loads_dense`).
    """

    matrices: dict[str, Matrix]
    sizes: dict[str, int | None]
    dense: bool


def suited(model: PreTrainedModel, scheme: SchemeParams) -> Suited:
    """What a scheme does with a model.

    Raises:
        ValueError: the model has nothing to quantize, a width does not suit, or transformers could not load the result.
    """
    matrices = quantizable_matrices(model, scheme)
    require_readable_experts(model, matrices, scheme)
    require_widths(matrices, scheme)
    formats = {id(own): own for own in (format_of(name, scheme) for name in matrices)}
    dense = loads_dense(model, scheme, list(formats.values()))
    if scheme.kv_cache is not None:
        cached_attention(model, scheme.kv_cache, dense)
    return Suited(matrices, layer_group_sizes(matrices, scheme, dense), dense)
