"""Running a decoder layer only as far as one of its Linears, and what its Linears are to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from plumbline.base_model.decoder import Call, run_layer
from plumbline.base_model.inputs import LinearInputs
from plumbline.base_model.matrices import holder

ADDS_UP = 1e-2
"""Largest relative difference between a layer's output and the sum of its input and what its Linears add to it."""


class _Reached(Exception):
    """The Linear has its input; the rest of the layer need not run."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What a pass through a decoder layer showed.

    Attributes:
        inputs: of the wanted Linears that ran, by name within the layer, (tokens, in).
        outputs: of the wanted Linears that ran, (tokens, out).
        hidden: the layer's output (1, tokens, width); None if the pass was stopped before.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    hidden: Tensor | None


def observe(
    layer: nn.Module,
    hidden: Tensor,
    call: Call,
    inputs_of: Sequence[str] = (),
    outputs_of: Sequence[str] = (),
    stop_at: str | None = None,
) -> Observed:
    """Run a decoder layer and observe some of its Linears.

    Args:
        hidden: (1, tokens, width).
        inputs_of, outputs_of: names of Linears within the layer.
        stop_at: the Linear whose input ends the pass; None: run the whole layer.
    """
    seen = Observed({}, {}, None)

    def read(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            seen.inputs[name] = x.reshape(-1, x.shape[-1])
            if name == stop_at:
                raise _Reached

        return hook

    def written(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            seen.outputs[name] = out.reshape(-1, out.shape[-1])

        return hook

    with _hooks() as handles:
        for name in outputs_of:
            handles.append(layer.get_submodule(name).register_forward_hook(written(name)))
        for name in {*inputs_of, *([] if stop_at is None else [stop_at])}:
            handles.append(layer.get_submodule(name).register_forward_pre_hook(read(name), with_kwargs=True))
        try:
            return replace(seen, hidden=run_layer(layer, hidden, call))
        except _Reached:
            return seen


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

    inputs = LinearInputs({name: holder(layer, inner) for name, inner in local.items()}, visit)
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
    seen = observe(layer, hidden, call, outputs_of=[local[name] for name in candidates])
    assert seen.hidden is not None
    moved = seen.hidden.double() - hidden.double()
    missing = moved - sum(out.double() for out in seen.outputs.values())
    if candidates and missing.norm() <= ADDS_UP * moved.norm():
        return tuple(candidates), ""
    return (), "the layer adds more to the residual stream than its Linears' outputs: only their inputs are corrected"
