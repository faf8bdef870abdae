"""The inputs of a model's linear layers, and the project's statistics of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats


@dataclass(frozen=True)
class Seen:
    """The input of one Linear over a few tokens, collected here without the project's own statistics."""

    x: Tensor
    hessian: Tensor


def seen_by_linears(model: nn.Module, tokens: Tensor) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            seen[name] = Seen(x, x.T @ x)

        return hook

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def statistics_of(model: PreTrainedModel, tokens: Tensor, **settings: object) -> ActivationStats:
    samples = [(f"{row:03}", ids) for row, ids in enumerate(tokens.tolist())]
    params = StatisticsParams.model_validate(settings)
    return collect(model, samples, params, base_model_digest="", fingerprint="")
