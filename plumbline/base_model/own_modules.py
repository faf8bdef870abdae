"""A model that several threads change the modules of."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_own_modules(model: Model) -> Model:
    """A copy whose modules are its own and whose parameters and buffers are the model's.

    One may hang hooks on it, replace a `forward` or swap parameters for a call while other threads run or copy the
    model; it takes next to no memory.
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, dict(tensors))
