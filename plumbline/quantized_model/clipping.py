"""Clipping: cut off the largest weights of a group where the finer grid reduces the error of the output.

This is AWQ's second search (Lin et al., arXiv 2306.00978). The range of every group of weights that share a scale is
shrunk step by step. The range with the smallest output error of the group alone is used, || (Q(w) - w) x_g ||^2 =
d S_gg d^T with S_gg the group's block of the second moments. The error of a group wider than `BLOCK` is the sum over
its blocks, as if these were not correlated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plumbline.quantized_model.grid import Grid, global_scale_of, multiplier, round_to_grid, scale_and_zero

SHARES = tuple(step / 20 for step in range(20, 10, -1))
"""Shares of the whole range, as in AWQ, largest first; the first of equal errors wins. Smaller ones gain nothing."""
BLOCK = 128
CHUNK = 1 << 17
"""Weights processed at a time, few enough for the cache of a core."""


def clipped(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """A clipped weight: its minmax grid has the smallest output error, group by group.

    Args:
        weight: (out, in), the model's dtype.
        hessian: (in, in), S of its input.
        grid: with a scale per group or per output channel.

    Returns:
        (out, in), the model's dtype. Dead channels have no influence.
    """
    rows, columns = weight.shape
    group = grid.group_size or columns
    block = next(size for size in range(min(BLOCK, group), 0, -1) if group % size == 0)
    S = hessian.to(weight.device).view(columns // block, block, columns // block, block)
    S = torch.stack([S[i, :, i] for i in range(columns // block)]).float()
    global_scale = global_scale_of(weight) if grid.is_two_level else None
    result = torch.empty_like(weight)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        W = weight[start : start + step].float().view(-1, columns // group, group)
        low, high = W.amin(-1).clamp(max=0), W.amax(-1).clamp(min=0)
        if grid.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        least = torch.full_like(low, torch.inf)
        best_low, best_high = low, high
        for share in SHARES:
            a, b = ((x * share).to(weight.dtype).float() for x in (low, high))
            scale, zero = scale_and_zero(a, b, grid, weight.dtype, global_scale)
            s, z = multiplier(scale, global_scale).float().unsqueeze(-1), zero.unsqueeze(-1)
            # The product in the model's dtype is what runs, see `grid.dequantize`.
            codes = round_to_grid(W, s, grid, z)
            running = grid.numbers.values(codes).sub_(z).mul_(s).to(weight.dtype).float()
            D = (running - W).view(len(W), -1, block).transpose(0, 1)
            lost = (torch.bmm(D, S) * D).sum(-1).t().reshape(*low.shape, -1).sum(-1)
            better = lost < least
            least = torch.where(better, lost, least)
            best_low, best_high = torch.where(better, a, best_low), torch.where(better, b, best_high)
        cut = W.clamp(best_low.unsqueeze(-1), best_high.unsqueeze(-1))
        result[start : start + step] = cut.view(-1, columns).to(weight.dtype)
    return result
