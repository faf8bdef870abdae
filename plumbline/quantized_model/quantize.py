"""Quantizing a model from the statistics of a calibration set: bits per layer, transform, rounding, activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.inputs import EXPERT
from plumbline.base_model.matrices import Matrix, WeightMatrix
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.progress import Bar
from plumbline.quantized_model.awq import awq
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.fold_search import FoldCheck
from plumbline.quantized_model.folding import Transform, scaled_site, transform_notes
from plumbline.quantized_model.gptq import solve_flops
from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.input_statistics import InputStatistics, Statistics
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.mixed import allocate
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize_site import quantize_site, relative_error
from plumbline.quantized_model.scheme import format_of, grid_of_scheme, scheme_of
from plumbline.quantized_model.smoothquant import smoothquant
from plumbline.quantized_model.statistics_check import require_statistics
from plumbline.quantized_model.suits import suited

FEW = 4
"""Tokens that show which Linears a model calls."""


def quantize_model(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    factors: Factors | None = None,
    *,
    errors: bool = True,
    progress: bool = False,
) -> Quantized:
    """Quantize every matrix that the scheme selects, from the statistics of its site, without running the model.

    The members of a site are solved stacked: rows do not interact, and q, k and v share one factor of the Hessian.

    Args:
        model: the base model; not changed.
        stats: of the calibration set.
        factors: cache of Hessian factors, shared between the schemes of a calibration set; None: no cache.
        errors: compute the relative error of every layer. It is reported and influences nothing.
        progress: say how far it is.

    Raises:
        ValueError: the scheme does not suit the model or the statistics, or has `propagate: quantized`, which
            `propagated` implements. Raised before anything is computed.
    """
    if scheme.propagate == "quantized":
        raise ValueError("propagate: quantized runs the calibration set again: call propagate.propagated instead")
    work = grouped(model, stats, scheme)
    linears, notes = work.matrices, notes_of(scheme)
    with one_thread():  # fixes the order of sums whatever the number of cores
        bits = _bits(linears, stats, scheme, notes, factors)
    transform = transform_of(model, linears, stats, scheme, bits, work.sizes)
    if scheme.transform is not None and transform is not None:
        notes |= transform_notes(scheme.transform, transform.facts, transform.unfolded, notes.get("remarks", []))

    def task(names: list[str]) -> Callable[[], dict[str, Layer]]:
        site, first = work.sites.get(names[0]), names[0]
        grid = grid_of_scheme(work.schemes[first], bits.get(first), work.sizes[first])
        members = {name: linears[name].weight.contiguous() for name in names}
        if transform is None:
            return partial(quantize_site, members, site, grid, work.schemes[first], factors, errors)
        return partial(quantize_transformed, transform, members, site, grid, work.schemes[first], errors)

    tasks = list(map(task, work.groups))
    with Bar(total=len(linears), desc="quantization", unit="matrices", disable=None if progress else True) as bar:
        parts = in_parallel([partial(_counted, bar, task) for task in tasks], list(map(work.cost, work.groups)))
    layers = {name: layer for part in parts for name, layer in part.items()}
    parameters = {} if transform is None else dict(transform.parameters)
    rows = {} if transform is None else transform.rows
    return Quantized({name: layers[name] for name in linears}, parameters, notes, work.dense, work.left, rows)


def _counted(bar: Bar, task: Callable[[], dict[str, Layer]]) -> dict[str, Layer]:
    layers = task()
    bar.update(len(layers))
    return layers


@dataclass(frozen=True, eq=False)
class Grouped:
    """What a scheme quantizes of a model, in groups that are solved by themselves.

    Attributes:
        matrices: by name, in the model's order.
        groups: names of the matrices that read one input and have one format.
        sites: the statistics of the input by name of a matrix; a matrix that no token reached has none.
        schemes: as `scheme_of` by name of a matrix.
        sizes: group sizes.
        dense, left: as in `Quantized`.
    """

    matrices: dict[str, Matrix]
    groups: list[list[str]]
    sites: Mapping[str, InputStatistics]
    schemes: dict[str, SchemeParams]
    sizes: Mapping[str, int | None]
    dense: bool
    left: dict[str, str]

    def cost(self, names: list[str]) -> float:
        """Operations that a group takes."""
        return solve_flops(sum(self.matrices[n].out_features for n in names), self.matrices[names[0]].in_features)


def grouped(
    model: PreTrainedModel,
    stats: Statistics,
    scheme: SchemeParams,
    run: Callable[[Sequence[str]], set[str]] | None = None,
) -> Grouped:
    """What a scheme quantizes of a model, after every check that needs no weight.

    Args:
        model: weights may be on the meta device if `run` is given.
        stats: its values are not read.
        run: runs a few tokens and returns which of the named modules the model calls; None: `called`.

    Raises:
        ValueError: the scheme does not suit the model or the statistics.
    """
    suits = suited(model, scheme)
    static = any(own.activations is not None and own.activations.calibrated for own in scheme.all)
    left = not_called(suits.matrices, stats, run or partial(called, model)) if static else {}
    linears = {name: matrix for name, matrix in suits.matrices.items() if name not in left}
    require_statistics(linears, stats, scheme)
    sites = {member: site for site in stats.sites.values() for member in site.members}
    by_site: dict[tuple[str, int], list[str]] = {}
    for name in linears:  # members of a site with formats of their own are quantized apart
        first = sites[name].members[0] if name in sites else name
        by_site.setdefault((first, id(format_of(name, scheme))), []).append(name)
    schemes = {name: scheme_of(name, linears[name], scheme) for name in linears}
    return Grouped(linears, list(by_site.values()), sites, schemes, suits.sizes, suits.dense, left)


def notes_of(scheme: SchemeParams) -> dict[str, Any]:
    """The notes of every model under the scheme."""
    return {"remarks": scheme.remarks} if scheme.remarks else {}


def not_called(
    linears: Mapping[str, WeightMatrix], stats: Statistics, run: Callable[[Sequence[str]], set[str]]
) -> dict[str, str]:
    """Matrices outside experts that the model does not call -> reason. Runs a few tokens if some were not reached."""
    unreached = [name for name in linears if name in stats.unreached and not EXPERT.search(name)]
    if not unreached:
        return {}
    reason = "the model does not call it (it may read the weight itself), so nothing rounds its input"
    ran = run(unreached)
    return {name: reason for name in unreached if name not in ran}


@torch.no_grad()
def called(model: PreTrainedModel, names: Sequence[str]) -> set[str]:
    """Which of these modules the model calls for a few tokens."""
    seen: set[str] = set()
    own = with_own_modules(model)
    for name in names:
        own.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.add(name))  # type: ignore[misc]
    with called_as_quantized(own):
        own(input_ids=torch.arange(FEW, device=model.device)[None], use_cache=False)
    return seen


def _bits(
    linears: Mapping[str, WeightMatrix],
    stats: Statistics,
    scheme: SchemeParams,
    notes: dict[str, Any],
    factors: Factors | None,
) -> dict[str, int]:
    if scheme.mixed is None:
        return {name: scheme_of(name, matrix, scheme).weight_bits for name, matrix in linears.items()}
    allocation = allocate(linears, stats, scheme, factors)
    notes["mixed"] = allocation.facts
    return allocation.bits


def transform_of(
    model: PreTrainedModel,
    linears: Mapping[str, WeightMatrix],
    stats: Statistics,
    scheme: SchemeParams,
    bits: Mapping[str, int],
    sizes: Mapping[str, int | None],
    check: FoldCheck | None = None,
) -> Transform | None:
    """The transform of the scheme, if it has one.

    Args:
        linears: all that the scheme quantizes, or those of a decoder layer.
        check: of `find_folds`.
    """
    if scheme.transform is None:
        return None
    if scheme.transform == "awq":
        return awq(model, linears, stats, scheme, bits, sizes, check)
    return smoothquant(model, linears, stats, scheme, check)


def quantize_transformed(
    transform: Transform,
    members: dict[str, Tensor],
    site: InputStatistics | None,
    grid: Grid,
    scheme: SchemeParams,
    errors: bool,
) -> dict[str, Layer]:
    """`quantize_site` with folded weights and scaled input; errors are relative to the original weights."""
    scales = transform.scales.get(next(iter(members)) if site is None else site.members[0])
    folded = {name: transform.weights.get(name, W) for name, W in members.items()}
    scaled = site if site is None or scales is None else scaled_site(site, scales)
    layers = quantize_site(folded, scaled, grid, scheme, errors=False)
    if not errors:
        return layers
    for name, layer in layers.items():
        s = 1.0 if scales is None else scales.to(folded[name].device)
        # Undo the scale of the next site, which divided the rows.
        row_divisors = transform.rows[name].unsqueeze(1) if name in transform.rows else 1.0
        running = dequantize(layer.weight).float() / s * row_divisors
        layers[name] = replace(layer, error=relative_error(members[name], running, site))
    return layers
