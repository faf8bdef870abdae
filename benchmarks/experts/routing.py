"""Whether the routing of a mixture means something: perplexity, shares of tokens, and what wrong experts cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import MixtralForCausalLM, PreTrainedModel

from benchmarks.experts.texts import Windows
from plumbline.base_model.folder import BUNDLED
from plumbline.base_model.load import load_model


@torch.no_grad()
def perplexity(model: PreTrainedModel, ids: np.ndarray) -> float:
    """exp of the mean negative log-likelihood of every token after the first of a window."""
    nats = []
    for row in ids:
        x = torch.from_numpy(row)[None]
        logits = model(input_ids=x, use_cache=False).logits[0, :-1].float()
        nats.append(torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="none"))
    return float(torch.cat(nats).mean().exp())


@torch.no_grad()
def chosen_experts(model: MixtralForCausalLM, ids: np.ndarray) -> Tensor:
    """int64 (layers, tokens, active): the experts that the routers choose."""
    layers = []
    for row in ids:
        out = model(input_ids=torch.from_numpy(row)[None], use_cache=False, output_router_logits=True)
        layers.append(
            torch.stack([logits.topk(model.config.num_experts_per_tok).indices for logits in out.router_logits])
        )
    return torch.cat(layers, dim=1)


def shares(chosen: Tensor, experts: int) -> Tensor:
    """float64 (layers, experts): the share of the tokens' choices that falls on each expert; rows sum to 1."""
    counts = torch.stack([torch.bincount(layer.flatten(), minlength=experts) for layer in chosen])
    return counts.double() / counts.sum(1, keepdim=True)


def entropy(p: Tensor) -> Tensor:
    """Bits (layers,) of shares (layers, experts)."""
    return torch.special.entr(p).sum(1) / np.log(2)


@torch.no_grad()
def wrongly_routed(model: MixtralForCausalLM) -> MixtralForCausalLM:
    """A copy in which every token goes to the experts after those that the router chose."""
    other = copy.deepcopy(model)
    for layer in other.model.layers:
        layer.mlp.gate.weight.copy_(layer.mlp.gate.weight.roll(1, 0))
    return other


def description(folder: Path, held_out: Windows) -> Iterator[str]:
    """Lines of Markdown about the mixture in a folder, beside the bundled model."""
    model = load_model(folder, "cpu")
    assert isinstance(model, MixtralForCausalLM)
    ids, domains = held_out.ids, np.array(held_out.domains)
    experts = model.config.num_local_experts
    count = sum(parameter.numel() for parameter in model.parameters())
    yield f"| {len(ids)} held-out windows of {ids.shape[1]} tokens | perplexity |\n|---|---:|"
    yield f"| the bundled model | {perplexity(load_model(BUNDLED, 'cpu').float(), ids):.2f} |"
    yield f"| the mixture, {count / 1e6:.1f} M weights | {perplexity(model, ids):.2f} |"
    yield f"| the mixture, every token sent to wrong experts | {perplexity(wrongly_routed(model), ids):.2f} |"
    by_domain = [shares(chosen_experts(model, ids[domains == name]), experts) for name in ("code", "prose")]
    both = sum(by_domain) / 2
    yield f"\n| layer | share of tokens per expert, % | entropy, bits of {np.log2(experts):.0f} | code against prose |"
    yield "|---:|---|---:|---:|"
    moved = (by_domain[0] - by_domain[1]).abs().sum(1) / 2
    for layer, (row, bits, distance) in enumerate(zip(both, entropy(both), moved, strict=True)):
        yield f"| {layer} | {' '.join(f'{100 * share:.0f}' for share in row)} | {bits:.2f} | {100 * distance:.0f} % |"
    yield "\nCode against prose: the share of the choices that fall on other experts in the other domain."
