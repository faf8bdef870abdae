"""AWQ: scale up the weight channels that multiply large activations, which reduces their rounding error.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: AWQ, arXiv 2306.00978, section 3.2, equations 4 and 5: for a
site with W the weights of its Linears, s = mean|X|^alpha per channel, and alpha in [0, 1] minimizes

    L(s) = || (Q(W diag(s)) diag(s)^-1 - W) X ||^2 = tr(D S D^T),  D = Q(W diag(s)) diag(s)^-1 - W,  S = sum of x x^T.

The authors measure L on sampled tokens. From the stored S it is computed over all tokens, without a forward pass. Q
rounds the folded weight, in the model's dtype, to nearest on the scheme's grid. As in the authors' code, s is divided
by sqrt(max(s) min(s)). There are two differences: L of q, k and v is the error of their own outputs (authors: of the
attention block), because the stored statistics give that; and the weights of q and k are clipped, too (authors: not),
see clipping.py. KL divergence on the bundled model, W4A16 in groups of 128: round to nearest 0.0366, with scales
0.0365, with scales and clipping 0.0265.

s is not restricted to powers of two. They would fold exactly, but are too coarse: on the bundled model with groups of
128 they gain nothing (alpha is 0 at every site), while free scales lower L by 2 % (4 bits; the model has no outliers)
and the KL divergence by 5 % (3 bits). SmoothQuant would lose a third of its gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.matrices import WeightMatrix
from plumbline.quantized_model.clipping import clipped
from plumbline.quantized_model.fold_search import FoldCheck, find_folds
from plumbline.quantized_model.folding import Fold, FoldedParameters, Transform, scaled_site, shared, snapped
from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.input_statistics import InputStatistics, Statistics
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.rtn import rtn
from plumbline.quantized_model.scheme import grid_of_scheme, layer_group_sizes
from plumbline.quantized_model.smoothquant import OVERFLOW, members_dtype, sites_read_by, why_not

STEPS = 20
ALPHAS = tuple(step / STEPS for step in range(STEPS + 1))
"""0 leaves the weights unscaled, so the smallest L is never larger than that of round to nearest."""
SCREENED_ROWS = 128
"""Rows of each Linear, evenly spread, on which all alphas are compared; `FINALISTS` and 0 are compared on all rows."""
FINALISTS = 4
"""Their gain in L (mean of logarithms, bundled model) is 0.96 to 0.99 of that of all alphas on all rows."""
BLOCK = 512
"""Columns of S multiplied at a time."""

Round = Callable[[Tensor], Tensor]
"""Rounds weights (rows, in), in the model's dtype, to those that the quantized model multiplies with."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The scale of one site.

    Attributes:
        alpha: the chosen exponent; 0: the site is not scaled.
        s: (width,) float32.
        error: L(s) of all Linears of the site.
        before: L(1), the error without scaling.
    """

    alpha: float
    s: Tensor
    error: float
    before: float


def awq(
    model: PreTrainedModel,
    linears: Mapping[str, WeightMatrix],
    stats: Statistics,
    scheme: SchemeParams,
    bits: Mapping[str, int] | None = None,
    sizes: Mapping[str, int | None] | None = None,
    check: FoldCheck | None = None,
) -> Transform:
    """Scale every site whose scale can be folded into its producer, then clip the weights of all sites.

    Args:
        model: the base model; not changed, and run only by the check of `find_folds`.
        linears: the Linears to quantize, by name.
        stats: of the calibration set; reads sums of magnitudes and second moments.
        scheme: grid and range of the weights.
        bits: width of each Linear under a mixed scheme.
        sizes: group size of each Linear; None: from the scheme.
        check: of `find_folds`.
    """
    folds, unfolded = find_folds(model, sites_read_by(linears, stats), check)
    sizes = layer_group_sizes(linears, scheme) if sizes is None else sizes
    grids = {name: grid_of_scheme(scheme, None if bits is None else bits[name], sizes[name]) for name in linears}
    refused = {name: reason for name, fold in folds.items() if (reason := why_not(fold, linears, scheme))}
    unfolded |= refused
    accepted = {name: fold for name, fold in folds.items() if name not in refused}
    parameters = FoldedParameters(model)
    scales: dict[str, Tensor] = {}
    facts: dict[str, dict[str, float]] = {}
    for name, chosen in _search(parameters, accepted, linears, stats, scheme, grids).items():
        if chosen.alpha and not parameters.add(folds[name], chosen.s):
            unfolded[name] = OVERFLOW
            continue
        if chosen.alpha:
            scales[name] = chosen.s
        facts[name] = {"alpha": chosen.alpha, "error": chosen.error / chosen.before if chosen.before else 1.0}
    transform = parameters.transform(linears, scales, unfolded, {"sites": facts})
    if (reason := why_no_clipping(scheme)) is not None:
        return replace(transform, facts={**transform.facts, "clipping": reason})
    weights = _clip(transform, linears, stats, grids)
    return replace(transform, weights=transform.weights | weights, facts={**transform.facts, "clipping": "searched"})


def _search(
    parameters: FoldedParameters,
    folds: Mapping[str, Fold],
    linears: Mapping[str, WeightMatrix],
    stats: Statistics,
    scheme: SchemeParams,
    grids: Mapping[str, Grid],
) -> dict[str, Choice]:
    """The scale of every site of `folds`, by site name.

    Sites are searched independently. Folding the scale of the next site divides rows of a Linear, and the grids of
    these rows scale with them.
    """

    def search(name: str) -> Choice:
        site, fold = stats.sites[name], folds[name]
        members = [member for member in site.members if member in linears]
        dtype = members_dtype(linears, site)
        candidates = [snapped(parameters, fold, s, dtype) for s in scales_of(site, fold)]
        weights = [parameters.weight(member) for member in members]
        return choose(candidates, weights, site, dtype, rounding(grids[members[0]], scheme))

    costs = [float(stats.sites[name].width) ** 2 * len(fold.readers) for name, fold in folds.items()]
    return dict(zip(folds, in_parallel([partial(search, name) for name in folds], costs), strict=True))


def _clip(
    transform: Transform, linears: Mapping[str, WeightMatrix], stats: Statistics, grids: Mapping[str, Grid]
) -> dict[str, Tensor]:
    """The clipped weights of all Linears that read a site, by name."""
    sites = sites_read_by(linears, stats)

    def clip(name: str) -> dict[str, Tensor]:
        site, s = stats.sites[name], transform.scales.get(name)
        S = site.hessian if s is None else scaled_site(site, s).hessian
        assert S is not None
        return {member: clipped(transform.weights[member], S, grids[member]) for member in sites[name]}

    costs = [float(sum(linears[member].weight.numel() for member in members)) for members in sites.values()]
    parts = in_parallel([partial(clip, name) for name in sites], costs)
    return {member: W for part in parts for member, W in part.items()}


def why_no_clipping(scheme: SchemeParams) -> str | None:
    """The reason why a scheme does not clip weights; None if it does."""
    if scheme.method != "rtn":
        return f"none: {scheme.method} rounds towards the weights as they are"
    if scheme.range != "minmax":
        return f"none: range {scheme.range} says how much of the weights the grid covers"
    return "none: one scale covers the whole weight" if scheme.per_tensor else None


def scales_of(site: InputStatistics, fold: Fold) -> list[Tensor]:
    """s (width,) float32 for every alpha of `ALPHAS`.

    A dead channel gets the smallest scale of the others, so that it does not widen their grid. Channels that come from
    one row of the producer share their mean magnitude.
    """
    magnitude = shared(site.sum_abs.double() / max(site.tokens, 1), fold.rows, "mean")
    used = magnitude > 0
    if not bool(used.any()):
        return [torch.ones(site.width, device=magnitude.device)] * len(ALPHAS)
    magnitude = torch.where(used, magnitude, magnitude[used].min())
    scales = []
    for alpha in ALPHAS:
        s = magnitude**alpha
        scales.append((s / (s.max() * s.min()).sqrt()).float())
    return scales


def choose(
    candidates: Sequence[Tensor], weights: Sequence[Tensor], site: InputStatistics, dtype: torch.dtype, round: Round
) -> Choice:
    """The scale with the smallest L; the first of equal ones.

    Args:
        candidates: s (width,) of every alpha; that of 0 is all ones.
        weights: (out, width) float32 of the Linears that read the site.
        site: its Hessian is read.
        dtype: of the stored weights.
        round: Q.
    """
    assert site.hessian is not None  # checked by `require_statistics`
    U = doubled_upper(site.hessian.to(weights[0].device))

    def error(s: Tensor, W: Sequence[Tensor]) -> float:
        return sum(quadratic(round((w * s).to(dtype)).float() / s - w, U) for w in W)

    screened = [_spread_rows(W) for W in weights]
    errors = [error(s, screened) for s in candidates]
    if any(len(part) < len(W) for part, W in zip(screened, weights, strict=True)):
        order = sorted(range(len(candidates)), key=lambda i: (errors[i], i))
        final = {0, *order[:FINALISTS]}
        errors = [error(s, weights) if i in final else torch.inf for i, s in enumerate(candidates)]
    best = min(range(len(candidates)), key=lambda i: (errors[i], i))
    return Choice(ALPHAS[best], candidates[best], errors[best], errors[0])


def rounding(grid: Grid, scheme: SchemeParams) -> Round:
    """The rounding Q of a scheme; `range: hessian` counts as mse, because the factor depends on the scales."""
    rule = "mse" if scheme.range == "hessian" else scheme.range
    return lambda W: dequantize(rtn(W, grid, rule, scheme.percentile, scheme.signed_scale))


def doubled_upper(S: Tensor) -> Tensor:
    """U (in, in) float32 with diag(D U D^T) = diag(D S D^T): blocks above the diagonal doubled, those below zero."""
    U = S.to(torch.float32, copy=True)
    for start in range(0, len(U), BLOCK):
        U[:start, start : start + BLOCK] *= 2
        U[start + BLOCK :, start : start + BLOCK] = 0
    return U


def quadratic(D: Tensor, U: Tensor) -> float:
    """tr(D S D^T) from U = `doubled_upper(S)`, which takes half the products; rows are summed in float64."""
    total = 0.0
    for start in range(0, len(U), BLOCK):
        stop = min(start + BLOCK, len(U))
        products = (D[:, :stop] @ U[:stop, start:stop]).mul_(D[:, start:stop])
        total += float(products.sum(1).sum(dtype=torch.float64))
    return total


def _spread_rows(W: Tensor) -> Tensor:
    n = min(len(W), SCREENED_ROWS)
    return W[torch.arange(n, device=W.device) * len(W) // n]
