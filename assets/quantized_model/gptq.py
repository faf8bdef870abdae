"""GPTQ: round column by column, let the columns still to come make up for the error.

Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, arXiv 2210.17323, Algorithm 1, in its letters: W the weights, H the Hessian
(up to a factor that cancels, S = sum of x x^T), E the scaled errors, U upper triangular with H^-1 = U^T U.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assets.quantized_model.grid import Grid, QuantizedWeight, round_to_grid, symmetric_scale
from assets.quantized_model.rtn import rtn

DAMPING_STEP = 10.0
"""Factor by which the damping grows when the Hessian is not positive definite; it stops at 1, the mean diagonal."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved weight and how it came about.

    Attributes:
        weight: the codes and scales.
        damping: share of the mean diagonal that was added, larger than asked where that was not positive definite; None
            after a fallback.
        dead: input channels that the calibration set never used (they are rounded to nearest).
        fallback: why the weight was rounded to nearest instead; None: it was not.
    """

    weight: QuantizedWeight
    damping: float | None
    dead: int
    fallback: str | None


def gptq(
    weight: Tensor,
    hessian: Tensor,
    tokens: int,
    bits: int,
    group_size: int | None,
    damping: float = 0.01,
    block_size: int = 128,
) -> Solution:
    """Quantize a weight, or several that read the same input stacked along dimension 0 (rows do not interact).

    Computed in float64: single precision moves about one code in 10^5 with the number of threads, and the same inputs
    must give the same bytes. Scales of a group come from its weights as they stand, compensated, when it is entered.

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        hessian: (in, in), S = sum over tokens of x x^T, symmetric.
        tokens: number of tokens in S.
        bits: width of a code, 2 to 8.
        group_size: divides `in`; None: one scale per output channel.
        damping: share of the mean diagonal added to the diagonal.
        block_size: columns solved one by one before the next block is brought up to date by one matrix product. It
            changes the speed, not the result.

    Returns:
        The solution. Without tokens, or with a Hessian that no damping up to 1 makes positive definite, it is round to
        nearest and says so.

    Raises:
        ValueError: shapes do not fit, or `group_size` does not divide the width.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        shape = tuple(hessian.shape)
        raise ValueError(f"the weight is {columns} wide, the Hessian {shape}: these are another model's statistics")
    if group_size is not None and columns % group_size:
        raise ValueError(f"group size {group_size} does not divide the width {columns}; take a divisor of it")
    S = hessian.to(weight.device, torch.float64)
    dead = int((S.diagonal() == 0).sum())
    if tokens == 0 or dead == columns:
        return Solution(rtn(weight, Grid(bits, group_size)), None, dead, "no tokens reached this layer")
    factor, used = inverse_factor(S, damping)
    if factor is None:
        reason = f"Hessian not positive definite at any damping from {damping:g} to 1"
        return Solution(rtn(weight, Grid(bits, group_size)), None, dead, reason)
    return Solution(_solve(weight, factor, bits, group_size, block_size), used, dead, None)


def inverse_factor(S: Tensor, damping: float) -> tuple[Tensor | None, float]:
    """U, upper triangular, with (S + damping * mean(diag S) * I)^-1 = U^T U, and the damping it took.

    One Cholesky decomposition and one triangular inverse: with the order of the channels reversed the factor L becomes
    an upper R with S = R R^T, and U = R^-1. The inverse itself, ill conditioned, is never formed.
    Channels that were never used get the mean diagonal and no coupling; the mean is over the others.

    Args:
        S: (in, in), float64, symmetric.
        damping: positive; grows tenfold up to 1 while the decomposition fails.

    Returns:
        (U, damping used), or (None, 1.0) where S is not positive definite even then, or not finite.
    """
    diagonal = S.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    H = S + torch.diag(mean * dead)
    while bool(torch.isfinite(H).all()):
        damped = H + torch.eye(len(H), dtype=H.dtype, device=H.device) * (damping * mean)
        L, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info) == 0:
            identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
            return torch.linalg.solve_triangular(L.flip(0, 1), identity, upper=True), damping
        if damping >= 1:
            break
        damping = min(1.0, damping * DAMPING_STEP)
    return None, 1.0


def _solve(weight: Tensor, U: Tensor, bits: int, group_size: int | None, block_size: int) -> QuantizedWeight:
    """Algorithm 1, transposed (a column of W is a contiguous row here) and looking back: a column is brought up to date
    when its turn comes, from the errors E before it, so that nothing is written twice."""
    W = weight.to(torch.float64).t().contiguous()
    columns, rows = W.shape
    width = group_size or columns
    E = torch.empty_like(W)
    codes = torch.empty(columns, rows, dtype=torch.int8, device=W.device)
    scales = []
    for g0 in range(0, columns, width):
        g1 = g0 + width
        group = torch.addmm(W[g0:g1], U[:g0, g0:g1].t(), E[:g0], alpha=-1)
        scale = symmetric_scale(group.abs().amax(0), bits, weight.dtype)
        scales.append(scale)
        s = scale.to(torch.float64)
        for b0 in range(g0, g1, block_size):
            b1 = min(b0 + block_size, g1)
            block = torch.addmm(group[b0 - g0 : b1 - g0], U[g0:b0, b0:b1].t(), E[g0:b0], alpha=-1)
            coefficients = U[b0:b1, b0:b1].t().contiguous()
            for j in range(b1 - b0):
                w = torch.addmv(block[j], E[b0 : b0 + j].t(), coefficients[j, :j], alpha=-1)
                q = round_to_grid(w, s, bits)
                codes[b0 + j] = q
                # The model multiplies with the product rounded to its own dtype: that error is made up for, too.
                running = (q * s).to(weight.dtype).to(torch.float64)
                E[b0 + j] = (w - running) / coefficients[j, j]
    return QuantizedWeight(codes.t().contiguous(), torch.stack(scales, 1), Grid(bits, group_size))
