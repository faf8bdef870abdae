"""Experts that a model stores as one tensor: the tokens routed to each expert, and the inputs of its products.

Since version 5, transformers holds the experts of a layer in 3-dimensional parameters, `gate_up_proj` and `down_proj`
with the expert first, and multiplies them in one of several ways (`integrations/moe.py`: a loop, batched or grouped
products). No module sees the tokens of one expert. So they are selected here by the router's choice, an argument of the
experts' module. The input of `down_proj` is computed a second time: one product with `gate_up_proj` per expert, about a
third of the cost of the experts. The model's own computation is unchanged.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SAID_BY_TRANSFORMERS = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
"""Attributes that transformers' `use_experts_implementation` sets on a class of experts."""
DOWN = "down_proj"


def are_fused_experts(module: nn.Module) -> bool:
    """Whether this is a module of fused experts of the supported form."""
    if not all(hasattr(module, name) for name in SAID_BY_TRANSFORMERS):
        return False
    weights = [getattr(module, name, None) for name in (up_name(module), DOWN)]
    return all(isinstance(weight, Tensor) and weight.dim() == 3 for weight in weights)


def projections(name: str, module: Any) -> list[str]:
    """Names of the weights of each expert of the module `name`, as if every expert were a module of two Linears."""
    experts = getattr(module, DOWN).shape[0]
    return [f"{name}.{expert}.{part}" for expert in range(experts) for part in (up_name(module), DOWN)]


def expert_of(matrix: str) -> int:
    """The number in the name of an expert's weight, `<experts>.<number>.gate_up_proj`."""
    return int(matrix.rsplit(".", 2)[1])


def expert_renumbered(matrix: str, by: int) -> str:
    """Such a name with another number."""
    experts, number, part = matrix.rsplit(".", 2)
    return f"{experts}.{int(number) + by}.{part}"


@torch.no_grad()
def routed_inputs(
    module: Any, hidden_states: Tensor, chosen: Tensor, watched: Container[str], at_least: int | None = 0
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The activations that the weights of each expert are multiplied with.

    Args:
        module: one that `are_fused_experts` accepts.
        hidden_states: (tokens, width) or (1, tokens, width), of one sample.
        chosen: (tokens, k) integers: the experts that the router chose for each token; a number beyond the last
            expert means no expert.
        watched: the `<expert>.<weight>` to yield.
        at_least: tokens of the sample that every expert sees, beside those that the router sends others, spread evenly
            over it; 0: only what the router sends; None: all tokens.

    Yields:
        (`<expert>.<weight>`, activations (n, width), positions (n,) int64 ascending), expert by expert, for experts
        with at least one token.
    """
    x = hidden_states.reshape(-1, hidden_states.shape[-1])
    chosen = chosen.reshape(len(x), -1)
    up, down = getattr(module, up_name(module)), getattr(module, DOWN)
    reached = torch.unique(chosen).tolist() if at_least == 0 else range(len(down))
    for expert in reached:
        first, second = f"{expert}.{up_name(module)}", f"{expert}.{DOWN}"
        if expert >= len(down) or (first not in watched and second not in watched):
            continue
        positions = topped_up((chosen == expert).any(dim=1), at_least).nonzero().view(-1)
        rows = x[positions]
        if first in watched:
            yield first, rows, positions
        if second in watched:
            bias = getattr(module, f"{up_name(module)}_bias")[expert] if module.has_bias else None
            weight = up[expert].T if module.is_transposed else up[expert]
            product = functional.linear(rows, weight, bias)
            yield second, module._apply_gate(product) if module.has_gate else module.act_fn(product), positions


def topped_up(sent: Tensor, at_least: int | None) -> Tensor:
    """Which tokens of a sample an expert sees: those that the router sends it, and others up to a number.

    Args:
        sent: (tokens,) bool.
        at_least: number of tokens; None: all.
    """
    if at_least is None:
        return torch.ones_like(sent)
    lacking = min(at_least, len(sent)) - int(sent.sum())
    if lacking <= 0:
        return sent
    others = (~sent).nonzero().view(-1)
    spread = torch.arange(lacking, device=sent.device) * len(others) // lacking
    return sent.index_fill(0, others[spread], True)


def up_name(module: Any) -> str:
    """Name of the parameter that holds the first matrix of every expert."""
    return "gate_up_proj" if module.has_gate else "up_proj"
