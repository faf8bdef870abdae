"""Running a decoder layer only as far as one of its Linears, and what its Linears are to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from plumbline.base_model.decoder import Call, run_layer
from plumbline.base_model.inputs import LinearInputs

ADDS_UP = 1e-2
"""Largest relative difference between a layer's output and the sum of its input and what its Linears add to it."""


class _Reached(Exception):
    """The Linear has its input; the rest of the layer need not run."""


def input_of(
    layer: nn.Module, linear: str | None, hidden: Tensor, call: Call, outputs_of: Sequence[str] = ()
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Run a decoder layer until a Linear has its input.

    Args:
        linear: name within the layer; None: run the whole layer.
        hidden: (1, tokens, width).
        outputs_of: names of Linears within the layer whose output is wanted.

    Returns:
        The input (tokens, in), None if the Linear was not reached, and the outputs of those that ran, by name.
    """
    inputs: list[Tensor] = []
    outputs: dict[str, Tensor] = {}

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        inputs.append(x.reshape(-1, x.shape[-1]))
        raise _Reached

    with _hooks() as handles:
        for name in outputs_of:
            keep = lambda module, args, out, name=name: outputs.__setitem__(name, out.reshape(-1, out.shape[-1]))  # noqa: E731
            handles.append(layer.get_submodule(name).register_forward_hook(keep))
        if linear is not None:
            handles.append(layer.get_submodule(linear).register_forward_pre_hook(read, with_kwargs=True))
        with suppress(_Reached):
            run_layer(layer, hidden, call)
    return (inputs[0] if inputs else None), outputs


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def sites_of(layer: nn.Module, local: Mapping[str, str], hidden: Tensor, call: Call) -> dict[tuple[str, ...], int]:
    """The Linears of a decoder layer that read one input, in the order of the forward pass; unreached ones last.

    Args:
        local: full name -> name within the layer.

    Returns:
        Full names of the members of each site -> how often a pass reads the site.
    """
    visits: dict[str, int] = {}

    def visit(site: str, x: Tensor, positions: Tensor | None) -> None:
        visits[site] = visits.get(site, 0) + 1

    inputs = LinearInputs({name: layer.get_submodule(inner) for name, inner in local.items()}, visit)
    with inputs.hooked():
        inputs.begin("")
        run_layer(layer, hidden, call)
    members = inputs.members()
    reached = {name for names in members.values() for name in names}
    return {names: visits[site] for site, names in members.items()} | {(n,): 0 for n in local if n not in reached}


def writers_of(
    layer: nn.Module, local: Mapping[str, str], sites: Mapping[tuple[str, ...], int], hidden: Tensor, call: Call
) -> tuple[tuple[str, ...], str]:
    """The Linears whose output is added to the residual stream as it is (o and down of a Llama), in order.

    They are the single members of their sites that are as wide as the stream, if the layer's output is its input plus
    theirs. That is tried on one sample, so no architecture is known here.

    Returns:
        (full names, empty) or (none, reason).
    """
    candidates = [
        names[0]
        for names, visits in sites.items()
        if len(names) == 1 and visits == 1 and layer.get_submodule(local[names[0]]).out_features == hidden.shape[-1]
    ]
    _, outputs = input_of(layer, None, hidden, call, [local[name] for name in candidates])
    output = run_layer(layer, hidden, call).double()
    total = hidden.double() + sum(out.double() for out in outputs.values())
    moved = (output - hidden.double()).norm()
    if candidates and (output - total).norm() <= ADDS_UP * moved:
        return tuple(candidates), ""
    return (), "the layer adds more to the residual stream than its Linears' outputs: only their inputs are corrected"
