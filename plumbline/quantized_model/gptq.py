"""GPTQ: round column by column and compensate each error in the columns that follow.

Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, arXiv 2210.17323, Algorithm 1, in the form of Chee et al., QuIP, arXiv
2307.13304, theorem 6 (see plumbline/quantized_model/factors.py). W the weights, S = sum of x x^T (the paper's H up to a
factor that cancels), H = S plus damping = L^T D L.

Computed in float64, because the same inputs must give the same bytes: in float32, the blocking of a matrix product
changes about one code in 10^5. Call it on one thread (`one_thread`, `in_parallel`), which fixes the order of every sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plumbline.quantized_model import solver
from plumbline.quantized_model.factors import Factor, Factors, factor
from plumbline.quantized_model.grid import (
    Grid,
    QuantizedWeight,
    dequantize,
    global_scale_of,
    multiplier,
    per_row,
    running_dtype,
)
from plumbline.quantized_model.numbers import Numbers
from plumbline.quantized_model.ranges import Ranges, weight_range
from plumbline.quantized_model.rtn import grid_of, to_nearest

LEAF = 32
"""Columns that are solved one by one before one matrix product updates the next ones."""
ROWS = 2048
"""Rows solved at a time (they do not interact), so that a leaf stays in the cache of a core."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A quantized weight and how it was solved.

    Attributes:
        weight: the codes and scales.
        damping: share of the mean diagonal that was added, larger than the parameter if that was not positive definite;
            None after a fallback.
        dead: number of input channels that the calibration set never used (they are rounded to nearest).
        fallback: reason why the weight was rounded to nearest instead; None if it was not.
        lost: (out,) float64, the squared output error of every row over the calibration set, diag(dW S dW^T), computed
            by the solver; None after a fallback.
    """

    weight: QuantizedWeight
    damping: float | None
    dead: int
    fallback: str | None
    lost: Tensor | None = None


def gptq(
    weight: Tensor,
    hessian: Tensor,
    tokens: int,
    grid: Grid,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    *,
    factors: Factors | None = None,
    ranges: Ranges | None = None,
    global_scale: Tensor | None = None,
) -> Solution:
    """Quantize a weight, or several that read the same input stacked along dimension 0 (rows do not interact).

    The scale of a group is computed from its compensated weights when the solver reaches the group. With `act_order`
    the columns of a group are not consecutive, so scales come from the original weight, as do scales per channel, block
    and tensor, and those of floating-point numbers. Codes are returned in the original order (compressed-tensors:
    actorder "static", which needs no g_idx).

    Args:
        weight: (out, in), the model's dtype, which the scale takes.
        hessian: (in, in), S = sum over tokens of x x^T, symmetric.
        tokens: number of tokens in S.
        grid: bits, group size (it divides `in`), symmetry, one scale per tensor or not.
        damping: share of the mean diagonal added to the diagonal; doubles until the Hessian is positive definite.
        block_size: columns (at most `LEAF`) that are solved one by one before a matrix product updates the next ones.
            It changes the speed, not the result.
        act_order: solve the columns in descending order of diag(S), equal ones by index.
        factors: cache of Hessian factors, shared between schemes; it does not change the result.
        ranges: computes scale and zero point of weights (..., group) that share them; None: minmax.
        global_scale: (1,) float32, where the grid has one; the same that `ranges` knows.

    Returns:
        The solution. Without tokens, or with a Hessian that no damping up to 1 makes positive definite, the weight is
        rounded to nearest, and `fallback` gives the reason.

    Raises:
        ValueError: shapes do not fit, or the group size does not divide the width.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        shape = tuple(hessian.shape)
        raise ValueError(f"the weight is {columns} wide, the Hessian {shape}: these are another model's statistics")
    if grid.group_size is not None and columns % grid.group_size:
        raise ValueError(f"group size {grid.group_size} does not divide the width {columns}; take a divisor of it")
    if grid.is_two_level and global_scale is None:
        global_scale = global_scale_of(weight)
    if ranges is None:
        ranges = partial(weight_range, grid=grid, dtype=weight.dtype, global_scale=global_scale)
    nearest = partial(to_nearest, weight, grid, ranges, None, global_scale)
    dead = int((hessian.diagonal() == 0).sum())
    if tokens == 0 or dead == columns:
        return Solution(nearest(), None, dead, "no tokens reached this layer")
    F = (
        factor(hessian, damping, act_order, weight.device)
        if factors is None
        else factors.get(hessian, damping, act_order, weight.device)
    )
    if F is None:
        reason = f"Hessian not positive definite at any damping from {damping:g} to 1"
        return Solution(nearest(), None, dead, reason)
    importance = channel_importance(F, hessian)
    solved, lost = _solve(weight, F, grid, ranges, importance, min(LEAF, block_size), global_scale)
    if running_dtype(grid, weight.dtype) != weight.dtype:  # the solver rounds products to the weight's dtype
        R = weight.double() - dequantize(solved).double()
        lost = (R @ hessian.to(R) * R).sum(1)
    return Solution(solved, F.damping, dead, None, lost)


def channel_importance(F: Factor, S: Tensor) -> Tensor:
    """(in,) float64: what the squared rounding error of each channel adds to the output error, D; 0 if it is dead."""
    D = F.D if F.order is None else torch.empty_like(F.D).index_copy_(0, F.order, F.D)
    return D.masked_fill(S.diagonal().to(D.device) == 0, 0.0)


def solve_flops(rows: int, columns: int) -> float:
    """Floating-point operations of one solve: the Cholesky factor and the updates of all later columns."""
    return columns**3 / 3 + rows * columns**2


def _solve(
    weight: Tensor,
    F: Factor,
    grid: Grid,
    ranges: Ranges,
    importance: Tensor,
    leaf: int,
    global_scale: Tensor | None,
) -> tuple[QuantizedWeight, Tensor]:
    rows = len(weight)
    static = F.order is not None or grid.group_size is None or grid.type == "float"
    scale, zero = grid_of(weight, grid, ranges, importance) if static else (None, None)
    of_rows: tuple[Tensor, ...] | None = None
    if scale is not None and zero is not None:
        of_rows = tuple(per_row(shared, grid, rows) for shared in (multiplier(scale, global_scale), zero))
    parts = []
    for start in range(0, rows, ROWS):
        static_grid = None if of_rows is None else tuple(shared[start : start + ROWS] for shared in of_rows)
        parts.append(_solve_rows(weight[start : start + ROWS], F, grid, ranges, importance, leaf, static_grid))
    codes, scales, zeros, lost = (torch.cat(part) for part in zip(*parts, strict=True))
    if F.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, F.order, codes)
    if static:
        assert scale is not None and zero is not None
        scales, zeros = scale, zero
    zero_point = None if grid.symmetric else zeros.to(torch.int8)
    return QuantizedWeight(codes.contiguous(), scales.contiguous(), grid, zero_point, global_scale), lost


def _solve_rows(
    weight: Tensor,
    F: Factor,
    grid: Grid,
    ranges: Ranges,
    importance: Tensor,
    leaf: int,
    static_grid: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (rows, in) in the solver's order, scale and zero point (rows, groups), and squared errors (rows,).

    Matrices are transposed, so that a column of W is contiguous. Before a column is solved, B holds its target, the
    weight plus the compensation of earlier errors; afterwards, its total error w - q.

    Args:
        static_grid: multiplier and zero point (rows, groups); None: computed per group, whose scale is the multiplier.
    """
    W = (weight if F.order is None else weight[:, F.order]).t().contiguous()
    B = W.to(torch.float64)
    columns, rows = W.shape
    width = grid.width_of_group(columns)
    group = torch.arange(columns, device=W.device) if F.order is None else F.order
    group = group // width
    if static_grid is None:
        scale = torch.empty(columns // width, rows, dtype=weight.dtype, device=W.device)
        zero = torch.empty(columns // width, rows, dtype=torch.float32, device=W.device)
    else:
        scale, zero = (x.t().contiguous() for x in static_grid)
    s, z = scale.to(torch.float64), None if grid.symmetric else zero.to(torch.float64)
    codes = torch.empty(columns, rows, dtype=torch.int8, device=W.device)
    R = torch.empty(leaf, rows, dtype=torch.float64, device=W.device)
    lost = torch.zeros(rows, dtype=torch.float64, device=W.device)
    solve = solver.solve_columns if solver.solves_columns(W, leaf) else _one_by_one
    for a, middle, b in _steps(0, columns, columns if static_grid is not None else width, leaf):
        if middle == b:  # enter the group [a, b)
            if static_grid is None:
                C = B[a:b]
                if a:
                    C = solver.solve_lower(F.L[a:b, a:b], C - W[a:b]).add_(W[a:b])
                g = a // width
                scale[g], zero[g] = ranges(C.t(), importance=importance[a:b])
                s[g] = scale[g]
                if z is not None:
                    z[g] = zero[g]
        elif middle > a:  # pass the errors of [a, middle) on to [middle, b)
            solver.add_product(B[middle:b], F.L[middle:b, a:middle], B[a:middle])
        else:
            solve(W[a:b], B[a:b], F.L[a:b, a:b], group[a:b], s, z, grid.numbers, codes[a:b], R[: b - a])
            lost.addmv_(R[: b - a].square_().t(), F.D[a:b])
    lost.sub_(F.added @ B.square_())
    return codes.t(), scale.t(), zero.t(), lost


def _steps(a: int, b: int, width: int, leaf: int) -> Iterator[tuple[int, int, int]]:
    """The schedule of the columns [a, b), bisected recursively at group boundaries, then at leaf boundaries.

    Yields:
        (a, b, b): enter the group [a, b). (a, a, b): solve the columns [a, b), all of one group, one by one.
        (a, middle, b): update [middle, b) with the errors of [a, middle), which is solved.
    """
    if b - a > width:
        unit = width
    else:
        if (b - a) == width:
            yield a, b, b
        unit = leaf
    if b - a <= unit:
        yield a, a, b
        return
    middle = a + unit * ((b - a + unit - 1) // unit // 2)
    yield from _steps(a, middle, width, leaf)
    yield a, middle, b
    yield from _steps(middle, b, width, leaf)


def _one_by_one(
    W: Tensor,
    B: Tensor,
    L: Tensor,
    group: Tensor,
    s: Tensor,
    z: Tensor | None,
    numbers: Numbers,
    codes: Tensor,
    R: Tensor,
) -> None:
    """Solve the columns of a leaf; writes `codes`, B and R, the error of each column against its target."""
    for j, g in enumerate(group.tolist()):
        w, r, q = B[j], R[j], B[j] / s[g]
        if z is not None:
            q.add_(z[g])
        q = numbers.nearest(q)
        codes[j] = q
        q = numbers.values(q)
        if z is not None:
            q = q - z[g]
        # The model multiplies with the product rounded to its own dtype; compensate that error, too.
        running = q.mul(s[g]).to(W.dtype).to(torch.float64)
        torch.sub(w, running, out=r)
        torch.sub(W[j], running, out=w)
        # Round product and sum separately: bit for bit as in solver.c.
        B[j + 1 :].add_(L[j + 1 :, j].unsqueeze(1) * w)
