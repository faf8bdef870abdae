"""Copies of a model that share its weights, for threads that change modules."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_own_modules(model: Model) -> Model:
    """A copy with its own modules that shares the model's parameters and buffers.

    A caller may add hooks, replace a `forward` or swap parameters for a call while other threads run or copy the model.
    The copy takes almost no memory.
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, dict(tensors))
