"""The names under which a checkpoint stores the weights of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict


def as_in_checkpoint(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the names and shapes of a checkpoint of this model, each tied weight once."""
    state = remove_tied_weights_from_state_dict(dict(state), model)
    return dict(revert_weight_conversion(model, state))


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
