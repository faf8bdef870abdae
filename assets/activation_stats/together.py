"""Statistics of many calibration sets in one pass: a sample is read once for all the sets that hold it.

Sets drawn again and again from one pool share most of their samples between them, and the forward pass is what costs.
Kept is what quantizing reads; the totals of a set are, bit by bit, those that `collect` gives for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assets.activation_stats.running import products
from assets.base_model.inputs import LinearInputs, linear_layers, network_of, require_finite, require_readable


@dataclass(eq=False)
class SiteTotals:
    """One site over one set."""

    members: tuple[str, ...]
    tokens: int
    hessian: Tensor
    """(width, width) float64: S = sum of x x^T."""
    min: Tensor
    """(width,) float32."""
    max: Tensor


@dataclass(frozen=True, eq=False)
class SetTotals:
    """All sites of one model over one set."""

    sites: Mapping[str, SiteTotals]
    """By name, sorted; only sites that saw a token."""
    unreached: tuple[str, ...]
    """Modules that no token came by, sorted."""


@torch.no_grad()
def collect_together(
    model: PreTrainedModel,
    samples: Mapping[str, Sequence[int]],
    sets: Sequence[Sequence[str]],
    ignore: Sequence[str],
    progress: Callable[[int], object] | None = None,
) -> list[SetTotals]:
    """Run the full-precision model once over the samples that any set holds.

    Args:
        model: in evaluation mode; weights and hooks are left as they were.
        samples: token ids by sample id.
        sets: sample ids of each set; their order does not matter.
        ignore: Linears that are not watched, as in `StatisticsParams`.
        progress: called after each sample with the number of sets that hold it.

    Returns:
        The totals of every set. In memory at a time: a Hessian per site and set.

    Raises:
        ValueError: a set is empty or names a sample twice; whatever `collect` refuses in model or samples.
    """
    holders: dict[str, list[int]] = {}
    for number, names in enumerate(sets):
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"set {number}: expected samples, each once; found {len(names)}, {len(set(names))} distinct"
            )
        for name in names:
            holders.setdefault(name, []).append(number)
    layers = linear_layers(model, ignore)
    network, device = network_of(model, layers), next(model.parameters()).device
    totals: list[dict[str, SiteTotals]] = [{} for _ in sets]
    name = ""

    def add(site: str, x: Tensor, positions: Tensor | None) -> None:
        x = x.reshape(-1, x.shape[-1])
        low, high = x.amin(dim=0).float(), x.amax(dim=0).float()
        require_finite(site, name, low, high)
        parts = products(x)
        for number in holders[name]:
            found = totals[number].get(site)
            if found is None:
                zeros = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
                totals[number][site] = found = SiteTotals((), 0, zeros, low, high)
            found.tokens += len(x)
            found.min, found.max = torch.minimum(found.min, low), torch.maximum(found.max, high)
            for part in parts:
                found.hessian += part

    inputs = LinearInputs(layers, add)
    with inputs.hooked():
        for name in sorted(holders):  # the order in which `collect` adds up
            ids = samples[name]
            require_readable(model, name, ids)
            inputs.begin(name)
            network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            if progress is not None:
                progress(len(holders[name]))
    members = inputs.members()
    return [_finished(sites, members, list(layers)) for sites in totals]


def _finished(sites: dict[str, SiteTotals], members: Mapping[str, tuple[str, ...]], layers: Sequence[str]) -> SetTotals:
    for name, site in sites.items():
        site.members = members[name]
        upper = site.hessian.triu()
        site.hessian = upper + upper.triu(1).T
    reached = {member for name in sites for member in members[name]}
    return SetTotals({name: sites[name] for name in sorted(sites)}, tuple(sorted(set(layers) - reached)))


def hessian_bytes(model: PreTrainedModel, ignore: Sequence[str]) -> int:
    """Bytes of one set's Hessians, were every layer a site of its own: an upper bound, known before any pass."""
    total = 0
    for layer in linear_layers(model, ignore).values():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # A Linear stores its weight as (out, in), a Conv1D as (in, out).
        total += 8 * weight.shape[1 if isinstance(layer, nn.Linear) else 0] ** 2
    return total
