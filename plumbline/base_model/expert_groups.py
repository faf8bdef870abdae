"""Loads the experts of a layer a few at a time, where the checkpoint stores them one by one.

transformers' loader stacks the experts that it is given. Given all, it holds them twice and more: as they are read, and
as they are stacked and joined. Given a few, in a module that has room for as many, it does the same to each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from plumbline.base_model.experts import are_fused_experts

GROUPS = 8
"""Groups that a layer's experts are loaded in."""
NUMBER = re.compile(r"\bexperts\.(\d+)\.")
Load = Callable[[Mapping[str, Any]], object]
"""Loads weights by their names in the checkpoint into the model."""


def load_in_groups(model: nn.Module, names: Mapping[str, str], weights: Mapping[str, Any], load: Load) -> None:
    """Load weights into a model whose own are on the meta device.

    Args:
        names: name in the checkpoint -> name in the model.
        weights: unread, by their names in the checkpoint.
    """
    rest = dict(weights)
    for owner, experts in _numbered(model, names, weights).items():
        for keys in experts.values():
            for key in keys:
                del rest[key]
        _load_experts(model, owner, {number: {k: weights[k] for k in keys} for number, keys in experts.items()}, load)
    load(rest)


def _numbered(
    model: nn.Module, names: Mapping[str, str], weights: Mapping[str, Any]
) -> dict[str, dict[int, list[str]]]:
    """Module of fused experts -> number of an expert -> names of its weights, where all experts are there."""
    found: dict[str, dict[int, list[str]]] = {}
    for key in weights:
        owner, number = names[key].rpartition(".")[0], NUMBER.search(key)
        if number is not None:
            found.setdefault(owner, {}).setdefault(int(number[1]), []).append(key)
    return {owner: experts for owner, experts in found.items() if _is_complete(model, owner, experts)}


def _is_complete(model: nn.Module, owner: str, experts: Mapping[int, list[str]]) -> bool:
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return False
    sizes = {len(parameter) for parameter in module.parameters(recurse=False)}
    return are_fused_experts(module) and sizes == {len(experts)} and set(experts) == set(range(len(experts)))


def _load_experts(model: nn.Module, owner: str, experts: Mapping[int, Mapping[str, Any]], load: Load) -> None:
    """Load all experts of a module."""
    module, size = model.get_submodule(owner), -(-len(experts) // GROUPS)
    before = dict(module.named_parameters(recurse=False))
    whole: dict[str, Tensor] = {}
    for start in range(0, len(experts), size):
        group = range(start, min(start + size, len(experts)))
        make_room(module, before, group)
        load({key: weight for number in group for key, weight in experts[number].items()})
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                if name not in whole:
                    whole[name] = parameter.new_empty(before[name].shape)
                whole[name][start : group.stop] = parameter
    for name in before:
        put_weight(module, name, whole.get(name, before[name]))


def make_room(module: nn.Module, parameters: Mapping[str, Tensor], experts: range) -> None:
    """Put parameters without content into a module, with room for some experts.

    Args:
        parameters: those with room for all experts, by name.
    """
    for name, parameter in parameters.items():
        put_weight(module, name, parameter.new_empty((len(experts), *parameter.shape[1:]), device="meta"))


@contextmanager
def room_for(module: nn.Module, parameters: Sequence[str], experts: range) -> Iterator[None]:
    """Within the context, these parameters of a module of fused experts have room for these experts alone."""
    before = {name: module.get_parameter(name) for name in parameters}
    try:
        make_room(module, before, experts)
        yield
    finally:
        for name, parameter in before.items():
            put_weight(module, name, parameter)


def put_weight(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        )
