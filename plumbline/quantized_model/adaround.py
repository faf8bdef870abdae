"""AdaRound: round the weights of a layer jointly, so that the error of its output is smallest.

Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv
2004.10568. The objective is the paper's local one (section 3.2): minimize tr((W - What) S (W - What)^T) with
S = sum of x x^T, the squared error of the layer's output, a quadratic binary problem per output channel.

The paper relaxes that problem (section 3.3: a rectified sigmoid instead of each bit, a regularizer that anneals it to 0
or 1, Adam). Plumbline searches the integers directly, by exact coordinate descent (descent.py) from GPTQ's solutions.
As in GPTQ, a code may be other than the two nearest ones. Error relative to rounding to nearest, on three layers of the
bundled model (3 and 4 bits, groups of 64): GPTQ 0.34 to 0.75; the relaxation 0.45 to 0.82 after 1,000 steps, and 0.31
to 0.65 with coordinate descent after it, in 2 to 11 s; this method 0.28 to 0.65, never worse than the latter, in 0.01
to 0.09 s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plumbline.quantized_model.descent import descend
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.gptq import Solution, gptq
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.ranges import Ranges


def adaround(
    W: Tensor,
    S: Tensor,
    tokens: int,
    grid: Grid,
    damping: float = 0.01,
    *,
    factors: Factors | None = None,
    ranges: Ranges | None = None,
    global_scale: Tensor | None = None,
) -> Solution:
    """Quantize a weight, or several that read the same input, stacked along dimension 0 (rows do not interact).

    Coordinate descent starts from two GPTQ solutions, without and with `act_order`; every row takes the better result.
    So no row is worse than either solution of GPTQ, and moving any single code to its neighbour does not improve it.
    Scales and zero points of a row are those of the solution that it started from.

    Args:
        W: (out, in), the model's dtype, which the scale takes.
        S: (in, in), sum over tokens of x x^T, symmetric; damped in GPTQ only.
        tokens: number of tokens in S.
        grid: bits, group size (it divides `in`), symmetry, one scale per tensor or not.
        damping: as in `gptq`.
        factors: cache of Hessian factors, shared between schemes; it does not change the result.
        ranges: computes scale and zero point of weights (..., group) that share them; None: minmax.
        global_scale: as in `gptq`.

    Returns:
        The solution. Dead channels are rounded to nearest. Without tokens, or with a Hessian that GPTQ cannot factor,
        the whole weight is, and `fallback` gives the reason. `damping` is GPTQ's.

    Raises:
        ValueError: shapes do not fit, or the group size does not divide the width.
    """
    best: Solution | None = None
    H = S.to(W.device, torch.float64)
    shared: dict[str, Any] = {"factors": factors, "ranges": ranges, "global_scale": global_scale}
    for act_order in (False, True):
        start = gptq(W, S, tokens, grid, damping, act_order=act_order, **shared)
        if start.fallback is not None:
            return start
        codes, lost = descend(W, H, start.weight)
        solution = replace(start, weight=replace(start.weight, codes=codes), lost=lost)
        best = solution if best is None else _better_rows(best, solution)
    assert best is not None
    return best


def _better_rows(a: Solution, b: Solution) -> Solution:
    """The solution with the smaller loss, row by row; `a` where they are equal."""
    assert a.lost is not None and b.lost is not None
    better = (b.lost < a.lost).unsqueeze(1)
    x, y = a.weight, b.weight
    codes = torch.where(better, y.codes, x.codes)
    if x.grid.is_split_by_rows:
        scale = torch.where(better, y.scale, x.scale)
        zero = None if x.zero_point is None or y.zero_point is None else torch.where(better, y.zero_point, x.zero_point)
    else:  # a scale of several rows comes from the original weight, so both solutions have the same
        scale, zero = x.scale, x.zero_point
    lost = torch.minimum(a.lost, b.lost)
    return replace(a, weight=replace(x, codes=codes, scale=scale, zero_point=zero), lost=lost)
