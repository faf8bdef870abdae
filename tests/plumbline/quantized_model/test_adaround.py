"""AdaRound against all roundings there are, against its objective written out, and against GPTQ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plumbline.base_model.one_thread import one_thread
from plumbline.quantized_model import descent
from plumbline.quantized_model.adaround import adaround
from plumbline.quantized_model.descent import descend
from plumbline.quantized_model.gptq import gptq
from plumbline.quantized_model.grid import Grid, QuantizedWeight, dequantize
from plumbline.quantized_model.numbers import code_range
from plumbline.quantized_model.rtn import rtn

GRIDS = [
    Grid(2, 16),
    Grid(3, 16, symmetric=False),
    Grid(4),
    Grid(4, None, symmetric=False),
    Grid(3, None, per_tensor=True),
    Grid(4, None, symmetric=False, per_tensor=True),
    Grid(8, 8),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_library = pytest.mark.skipif(descent.library() is None, reason="descent.c is not compiled")


def problem(rows: int, columns: int, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.4 * torch.randn(columns, columns, generator=g)
    x = (torch.randn(tokens, columns, generator=g) @ mix).double()
    return torch.randn(rows, columns, generator=g).to(dtype), x.T @ x


def row_errors(W: Tensor, weight: QuantizedWeight, S: Tensor) -> np.ndarray:
    """r S r^T of every row, written out."""
    R, S_ = (W.double() - dequantize(weight).double()).numpy(), S.double().numpy()
    return np.array([r @ S_ @ r for r in R])


def points(weight: QuantizedWeight, row: int, column: int) -> np.ndarray:
    """What every code would stand for at one place, from one-weight matrices."""
    low, high = code_range(weight.bits)
    at = (0, 0) if weight.grid.per_tensor else (row, column * weight.scale.shape[1] // weight.codes.shape[1])
    scale = weight.scale[at].view(1, 1)
    zero = None if weight.zero_point is None else weight.zero_point[at].view(1, 1)
    one = Grid(weight.bits, None, weight.grid.symmetric)
    codes = range(low, high + 1)
    made = [dequantize(QuantizedWeight(torch.tensor([[c]], dtype=torch.int8), scale, one, zero)) for c in codes]
    return np.array([float(value) for value in made])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_single_code_can_be_improved(grid: Grid, dtype: torch.dtype) -> None:
    """Every other code at every place, by the change of the objective in float64."""
    W, S = problem(3, 32, 60, dtype)
    solution = adaround(W, S, 60, grid)
    R, H = (W.double() - dequantize(solution.weight).double()).numpy(), S.numpy()
    for i, j in itertools.product(range(3), range(32)):
        now = R[i] @ H @ R[i]
        for value in points(solution.weight, i, j):
            other = R[i].copy()
            other[j] = float(W[i, j]) - value
            assert other @ H @ other >= now * (1 - 1e-9)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_no_row_is_worse_than_that_of_gptq_and_the_error_is_what_it_says(grid: Grid, act_order: bool) -> None:
    W, S = problem(24, 48, 30, torch.bfloat16)
    ours, other = adaround(W, S, 30, grid), gptq(W, S, 30, grid, act_order=act_order)
    errors = row_errors(W, ours.weight, S)
    assert (errors <= row_errors(W, other.weight, S) * (1 + 1e-9)).all()
    np.testing.assert_allclose(ours.lost.numpy(), errors, rtol=1e-7)
    assert (ours.damping, ours.fallback, ours.dead) == (other.damping, None, 0)
    assert ours.weight.grid == grid
    low, high = code_range(grid.bits)
    assert low <= int(ours.weight.codes.min()) <= int(ours.weight.codes.max()) <= high


@pytest.mark.parametrize("symmetric", [True, False])
def test_close_to_the_best_of_all_roundings(symmetric: bool) -> None:
    """All 4^8 codes of 2 bits in 8 columns on the grid that came out: in so few columns, a quarter is left at most."""
    best, ours, nearest = 0.0, 0.0, 0.0
    every = np.array(list(itertools.product(range(4), repeat=8)))
    for seed in range(12):
        W, S = problem(2, 8, 40, seed=seed)
        solution = adaround(W, S, 40, Grid(2, None, symmetric))
        for i in range(2):
            R = W[i].double().numpy() - points(solution.weight, i, 0)[every]
            least = np.einsum("nj,jk,nk->n", R, S.numpy(), R).min()
            found = row_errors(W, solution.weight, S)[i]
            assert found >= least * (1 - 1e-9)
            best, ours = best + least, ours + found
        nearest += row_errors(W, rtn(W, Grid(2, None, symmetric)), S).sum()
    assert ours < 1.25 * best
    assert ours < 0.7 * nearest


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, "half"])
def test_round_to_nearest_is_not_better_than_gptq_and_gptq_not_better_than_this(llama, seen, bits, group_size) -> None:
    gains = []
    for name, module in llama.named_modules():
        if name in seen and name != "lm_head":
            W, S, tokens = module.weight.detach(), seen[name].hessian, len(seen[name].x)
            grid = Grid(bits, None if group_size is None else W.shape[1] // 2)
            solutions = [rtn(W, grid), gptq(W, S, tokens, grid).weight, adaround(W, S, tokens, grid).weight]
            # The layer's outputs themselves, not the Hessian
            nearest, solved, ours = (
                float(((W.double() - dequantize(q).double()) @ seen[name].x.T).square().sum()) for q in solutions
            )
            assert nearest >= solved >= ours, name
            gains.append(ours / solved)
    assert np.mean(gains) < 0.95


@pytest.mark.parametrize("bits", [3, 4])
def test_the_same_order_on_every_site_of_the_bundled_model_and_real_text(bundled, make_stats, see, bits) -> None:
    model, tokens = bundled
    stats, seen = make_stats(model, tokens), see(model, tokens)
    errors: dict[str, list[float]] = {}
    for name, site in stats.sites.items():
        W, x = model.get_submodule(site.members[0]).weight.detach(), seen[name].x
        given = W, site.hessian, site.tokens, Grid(bits, 128)
        solutions = rtn(W, given[3]), gptq(*given).weight, adaround(*given).weight
        errors[name] = [float(((W.double() - dequantize(q).double()) @ x.T).square().sum()) for q in solutions]
    assert len(errors) == 24
    for name, (nearest, solved, ours) in errors.items():
        assert nearest >= solved >= ours, name
    nearest, solved, ours = np.exp(np.mean(np.log(list(errors.values())), axis=0))
    assert solved < 0.8 * nearest
    assert ours < 0.98 * solved


@needs_library
@given(
    st.sampled_from(GRIDS),
    st.sampled_from(DTYPES),
    st.integers(1, 5),
    st.sampled_from([16, 48, 80, 144]),
    st.integers(1, 200),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_compiled_and_in_pytorch_give_the_same_bits(grid, dtype, rows, columns, tokens, seed) -> None:
    W, S = problem(rows, columns, tokens, dtype, seed)
    start = rtn(W, grid)
    compiled = descend(W, S, start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "library", lambda: None)
        in_pytorch = descend(W, S, start)
    for one, other in zip(compiled, in_pytorch, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
def test_every_sweep_is_a_gain(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(descent, "library", lambda: None)
    W, S = problem(20, 64, 100, torch.bfloat16)
    start = rtn(W, Grid(3, 16))
    before, swept = row_errors(W, start, S), []
    for sweeps in (1, 2, 3, 1000):
        monkeypatch.setattr(descent, "SWEEPS", sweeps)
        codes, lost = descend(W, S, start)
        after = row_errors(W, QuantizedWeight(codes, start.scale, start.grid), S)
        np.testing.assert_allclose(lost.numpy(), after, rtol=1e-9)
        assert (after <= before).all()
        swept.append(after.sum())
        before = after
    assert swept[0] > swept[1] > swept[-1]


def test_more_rows_than_are_worked_on_at_once_come_out_as_if_alone() -> None:
    W, S = problem(descent.ROWS + 20, 16, 50)
    for grid in (Grid(3, 8), Grid(3, None, symmetric=False, per_tensor=True)):
        start = rtn(W, grid)
        codes, _ = descend(W, S, start)
        for row in (0, descent.ROWS - 1, descent.ROWS, descent.ROWS + 19):
            one = slice(None) if grid.per_tensor else slice(row, row + 1)
            zero = None if start.zero_point is None else start.zero_point[one]
            alone = QuantizedWeight(start.codes[row : row + 1], start.scale[one], grid, zero)
            assert torch.equal(descend(W[row : row + 1], S, alone)[0], codes[row : row + 1])


def test_stacked_members_are_solved_as_if_alone_and_a_factor_does_not_matter() -> None:
    W, S = problem(24, 64, 300)
    stacked = adaround(W, S, 300, Grid(4, 32)).weight
    assert torch.equal(adaround(W, S * 1024, 300, Grid(4, 32)).weight.codes, stacked.codes)
    for start, stop in ((0, 8), (8, 24)):
        alone = adaround(W[start:stop], S, 300, Grid(4, 32)).weight
        part = stacked.rows(start, stop)
        assert torch.equal(part.codes, alone.codes)
        assert torch.equal(part.scale, alone.scale)


def test_a_channel_never_used_is_rounded_to_nearest_and_counted() -> None:
    W, S = problem(8, 32, 200)
    S[5], S[:, 5] = 0, 0
    solution = adaround(W, S, 200, Grid(4))
    assert solution.dead == 1
    assert torch.equal(solution.weight.codes[:, 5], rtn(W, Grid(4)).codes[:, 5])


def test_no_tokens_falls_back_by_name() -> None:
    W, _ = problem(8, 32, 10)
    solution = adaround(W, torch.zeros(32, 32, dtype=torch.float64), 0, Grid(4, 16))
    assert solution.fallback == "no tokens reached this layer"
    assert solution.damping is None
    assert torch.equal(solution.weight.codes, rtn(W, Grid(4, 16)).codes)


def test_statistics_of_another_model_are_refused() -> None:
    W, S = problem(8, 32, 10)
    with pytest.raises(ValueError, match="another model's statistics"):
        adaround(W[:, :16].contiguous(), S, 10, Grid(4))


def test_the_number_of_threads_does_not_matter_within_one_thread() -> None:
    W, S = problem(256, 192, 400, torch.bfloat16)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            with one_thread():
                found.append(adaround(W, S, 400, Grid(3, 64)).weight)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other.codes, found[0].codes)
        assert torch.equal(other.scale, found[0].scale)
