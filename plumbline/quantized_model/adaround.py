"""AdaRound: round every weight so that the errors of a layer's weights make up for each other.

Nagel, Amjad, van Baalen, Louizos, Blankevoort: Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv
2004.10568. The objective is the paper's local one (section 3.2, its quadratic unconstrained binary problem per output
channel and the mean squared error of the layer's output that it comes to): of all roundings, the least
tr((W - What) S (W - What)^T), S = sum of x x^T.

The paper relaxes that problem (section 3.3: a rectified sigmoid instead of each bit, a regularizer that anneals it to 0
or 1, Adam). Here the integers themselves are searched, by exact coordinate descent (descent.py) from GPTQ's solutions,
and codes beside the nearest two are allowed, as in GPTQ. On three layers of the bundled model (3 and 4 bits, groups of
64), relative to rounding to nearest: GPTQ 0.34 to 0.75; the relaxation after 1,000 steps 0.45 to 0.82 and, descended
from where it ended, 0.31 to 0.65, in 2 to 11 s; this 0.28 to 0.65, never more than that, in 0.01 to 0.09 s. So the
relaxation does not earn its place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from plumbline.quantized_model.descent import descend
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.gptq import Solution, gptq
from plumbline.quantized_model.grid import Grid, QuantizedWeight
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
) -> Solution:
    """Quantize a weight, or several that read the same input stacked along dimension 0 (rows do not interact).

    Two starts, GPTQ with the channels as they come and with the largest first, each descended from; every row takes the
    better end. So no row is worse than GPTQ's, with either order, and no change of a single code to a neighbour makes
    it better. Scales and zero points are those of the start that a row came from.

    Args:
        W: (out, in), the model's dtype, which the scale takes.
        S: (in, in), sum over tokens of x x^T, symmetric. It is not damped: nothing is inverted but in GPTQ.
        tokens: number of tokens in S.
        grid: bits, group size (it divides `in`), symmetry, one scale per tensor or not.
        damping: GPTQ's.
        factors: where GPTQ's factors of this Hessian may be kept for other schemes; the result is the same.
        ranges: finds scale and zero point of the weights (..., group) that share them; None: from the smallest to the
            largest.

    Returns:
        The solution; channels that were never used are rounded to nearest. Without tokens, or with a Hessian that GPTQ
        cannot use, everything is and the solution says so. Its `damping` is that of the starts.

    Raises:
        ValueError: shapes do not fit, or the group size does not divide the width.
    """
    found: Solution | None = None
    H = S.to(W.device, torch.float64)
    for act_order in (False, True):
        start = gptq(W, S, tokens, grid, damping, act_order=act_order, factors=factors, ranges=ranges)
        if start.fallback is not None:
            return start
        codes, lost = descend(W, H, start.weight)
        solution = replace(start, weight=replace(start.weight, codes=codes), lost=lost)
        found = solution if found is None else _better_rows(found, solution)
    assert found is not None
    return found


def _better_rows(a: Solution, b: Solution) -> Solution:
    """Of every row the solution that loses less; `a` where they are equal."""
    assert a.lost is not None and b.lost is not None
    better = (b.lost < a.lost).unsqueeze(1)
    x, y = a.weight, b.weight
    codes = torch.where(better, y.codes, x.codes)
    # A scale per tensor comes from the weight as it is, so that both have the same.
    scale = x.scale if x.grid.per_tensor else torch.where(better, y.scale, x.scale)
    zero = x.zero_point
    if zero is not None and y.zero_point is not None and not x.grid.per_tensor:
        zero = torch.where(better, y.zero_point, zero)
    lost = torch.minimum(a.lost, b.lost)
    return replace(a, weight=QuantizedWeight(codes, scale, x.grid, zero), lost=lost)
