"""The names under which a checkpoint stores the weights of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, apply_converters, revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict


def as_in_checkpoint(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the names and shapes of a checkpoint of this model, each tied weight once.

    A weight that transformers merges from several while loading keeps its name and shape in the model, which
    transformers reads as well: in a quantized checkpoint it decompresses the parts first, and loses those that are not
    compressed.
    """
    state = remove_tied_weights_from_state_dict(dict(state), model)
    merging = [entry.reverse_transform() for entry in conversions_of(model) if _merges_weights(entry)]
    merged = {key: value for key, value in state.items() if apply_converters(key, merging)[1] is not None}
    rest = {key: value for key, value in state.items() if key not in merged}
    return dict(revert_weight_conversion(model, rest)) | merged


def conversions_of(model: PreTrainedModel) -> list[Any]:
    """The conversions by which transformers loaded the model, or would load it."""
    used = getattr(model, "_weight_conversions", None)
    return list(get_model_conversion_mapping(model, add_legacy=False) if used is None else used)


def _merges_weights(entry: Any) -> bool:
    """Whether transformers decompresses before a conversion (`HfQuantizer.update_weight_conversions`)."""
    patterns = getattr(entry, "_original_source_patterns", ())
    return isinstance(entry, WeightConverter) and all(pattern.endswith(".weight") for pattern in patterns)


def names_in_checkpoint(model: PreTrainedModel, linears: Iterable[str]) -> dict[str, str]:
    """Module name -> the name that a checkpoint gives to a Linear.

    A Linear that a checkpoint stores in another shape (merged with others, or in parts) keeps its module name, which
    transformers reads as well.
    """
    names = list(linears)
    probes = {f"{name}.weight": torch.full((2, 2), number) for number, name in enumerate(names)}
    stored: dict[str, str] = {}
    try:
        reverted = revert_weight_conversion(model, probes)
    except (RuntimeError, ValueError, KeyError, AttributeError):  # a conversion of shapes that the probes do not have
        return {name: name for name in names}
    for key, value in reverted.items():
        first = int(value.flatten()[0])
        if value.shape == (2, 2) and bool((value == first).all()) and key.endswith(".weight"):
            stored[names[first]] = key.removesuffix(".weight")
    return {name: stored.get(name, name) for name in names}
