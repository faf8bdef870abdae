"""FP8, FP4 and MX grids: scales and weights against compressed-tensors, solvers against slow ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.quantized_model.adaround import adaround
from plumbline.quantized_model.descent import descend
from plumbline.quantized_model.gptq import gptq
from plumbline.quantized_model.grid import (
    Grid,
    QuantizedWeight,
    dequantize,
    global_scale_of,
    multiplier,
    per_row,
    scale_and_zero,
)
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import weight_args
from plumbline.quantized_model.quantize_site import quantize_site
from plumbline.quantized_model.ranges import weight_range
from plumbline.quantized_model.rtn import rtn
from tests.helpers import formats
from tests.helpers.formats import GRIDS


def weight(seed: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different size, one of zeros, one with a huge value."""
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    W = W * torch.logspace(-4, 1, rows).unsqueeze(1)
    W[1] = 0
    W[2, 3] = 300.0
    return W.to(dtype)


def grouped(W: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """What shares a scale, along the last dimension, in the shape in which compressed-tensors stores scales."""
    if args.strategy == "tensor":
        return W.reshape(1, -1)
    if args.strategy == "channel":
        return W.unsqueeze(1)
    if args.strategy == "block":
        height, width = args.block_structure
        W = torch.nn.functional.pad(W, (0, -W.shape[1] % width, 0, -len(W) % height))
        blocks = W.view(len(W) // height, height, -1, width).transpose(1, 2)
        return blocks.reshape(*blocks.shape[:2], -1)
    return W.view(len(W), -1, args.group_size)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(GRIDS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.sampled_from([5, 150]),
    columns=st.sampled_from([32, 96, 160]),
)
def test_scales_and_weights_are_those_of_compressed_tensors(seed, name, dtype, rows, columns) -> None:
    W, grid = weight(seed, rows, columns, dtype), GRIDS[name]
    args = weight_args(grid)
    shared = generate_gparam(W.float().min(), W.float().max()) if grid.is_two_level else None
    values = grouped(W.float() if grid.scale_format != "model" else W, args)
    scale, _ = calculate_qparams(values.amin(-1), values.amax(-1), args, shared)
    quantized = rtn(W, grid)
    assert torch.equal(quantized.scale.float().view(-1), scale.float().view(-1))
    if grid.is_two_level:
        assert torch.equal(quantized.global_scale, shared)
    expected = fake_quantize(W.float(), scale.float(), None, args, shared)
    running = torch.float32 if grid.scale_format == "model" and dtype == torch.float32 else torch.bfloat16
    assert torch.equal(dequantize(quantized), expected.to(running))


def test_the_global_scale_of_nothing_is_one() -> None:
    assert global_scale_of(torch.zeros(3, 16)) == 1.0
    assert global_scale_of(torch.full((2, 16), 1e-38)) == 1.0
    assert float(global_scale_of(torch.tensor([-6.0, 1.0]))) == 448.0


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("rule", ["mse", "hessian", "imatrix"])
def test_the_error_sweep_finds_the_best_share_it_tries(name: str, rule: str) -> None:
    """Against every candidate, rounded in numpy float64."""
    grid = GRIDS[name]
    values = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    importance = torch.rand(32, generator=torch.Generator().manual_seed(4)) if rule != "mse" else None
    shared = global_scale_of(values) if grid.is_two_level else None
    scale, _ = weight_range(values, grid, torch.float32, rule, importance=importance, global_scale=shared)
    numbers = formats.E4M3 if grid.bits == 8 else formats.E2M1
    counts = np.ones(32) if importance is None else importance.double().numpy()

    def error(row: torch.Tensor, s: torch.Tensor) -> float:
        m = float(multiplier(s, shared))
        return float(
            (counts * (formats.nearest(row.double().numpy() / m, numbers) * m - row.double().numpy()) ** 2).sum()
        )

    for row, found in zip(values, scale, strict=True):
        absmax = row.abs().max()
        shares = [2.0, 1.0, 0.5] if grid.scale_format == "e8m0" else [s / 100 for s in range(60, 184, 4)] + [1.0]
        tried = [scale_and_zero(-absmax * p, absmax * p, grid, torch.float32, shared)[0] for p in shares]
        assert error(row, found) <= min(error(row, s) for s in tried) * (1 + 1e-5)
    plain, _ = weight_range(values, grid, torch.float32, global_scale=shared)
    assert sum(error(r, s) for r, s in zip(values, scale, strict=True)) <= sum(
        error(r, s) for r, s in zip(values, plain, strict=True)
    )


def slow_gptq(
    W: torch.Tensor, S: torch.Tensor, start: QuantizedWeight, act_order: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal Brain Quantization with fixed scales and numbers written out: weights, and the distance to a tie."""
    numbers = formats.E4M3 if start.bits == 8 else formats.E2M1
    rows, columns = W.shape
    s = per_row(multiplier(start.scale, start.global_scale), start.grid, rows).double().numpy()
    width = start.grid.width_of_group(columns)
    w, H = W.double().numpy().copy(), S.double().numpy()
    inverse = np.linalg.inv(H + 0.01 * np.diag(H).mean() * np.eye(columns))
    order = sorted(range(columns), key=lambda j: (-H[j, j], j)) if act_order else range(columns)
    Q, tie = np.zeros_like(w), np.full(rows, np.inf)
    middles = (numbers[1:] + numbers[:-1]) / 2
    for j in order:
        at = w[:, j] / s[:, j // width]
        tie = np.minimum(tie, (np.abs(at[:, None] - middles) / np.maximum(np.abs(middles), 0.01)).min(1))
        Q[:, j] = formats.nearest(at, numbers)
        running = torch.from_numpy(Q[:, j] * s[:, j // width]).to(W.dtype).double().numpy()
        w -= np.outer((w[:, j] - running) / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return Q, tie


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gptq_equals_the_slow_version(name: str, act_order: bool, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(7)
    W = torch.randn(140, 64, generator=g).to(dtype)
    x = torch.randn(300, 64, generator=g, dtype=torch.float64) @ torch.randn(64, 64, generator=g, dtype=torch.float64)
    grid = GRIDS[name]
    solution = gptq(W, x.T @ x, 300, grid, act_order=act_order)
    start = rtn(W, grid)  # block scales are those of the weight itself, fixed before the sweep
    assert torch.equal(solution.weight.scale, start.scale)
    Q, tie = slow_gptq(W, x.T @ x, start, act_order)
    clear = tie > 1e-6
    assert clear.sum() > 100
    values = grid.numbers.values(solution.weight.codes.double()).numpy()
    assert np.array_equal(values[clear], Q[clear])
    R = W.double() - dequantize(solution.weight).double()
    lost = (R @ (x.T @ x) * R).sum(1)
    assert torch.allclose(solution.lost, lost, rtol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_adaround_leaves_no_code_whose_neighbour_is_better(name: str) -> None:
    g = torch.Generator().manual_seed(9)
    W = torch.randn(6, 32, generator=g)
    x = torch.randn(60, 32, generator=g, dtype=torch.float64) @ torch.randn(32, 32, generator=g, dtype=torch.float64)
    S, grid = x.T @ x, GRIDS[name]
    solution = adaround(W, S, 60, grid)
    assert (solution.lost <= gptq(W, S, 60, grid, act_order=True).lost + 1e-9).all()

    def loss(codes: torch.Tensor) -> torch.Tensor:
        weight = QuantizedWeight(codes, solution.weight.scale, grid, None, solution.weight.global_scale)
        R = W.double() - dequantize(weight).double()
        return (R @ S * R).sum(1)

    best = loss(solution.weight.codes)
    for step in (-1, 1):
        for j in range(32):
            codes = solution.weight.codes.clone()
            codes[:, j] = (codes[:, j] + step).clamp(grid.numbers.first, grid.numbers.last)
            assert (loss(codes) >= best * (1 - 1e-7)).all()


def test_compiled_and_plain_descent_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    W, x = torch.randn(300, 64, generator=g), torch.randn(200, 64, generator=g, dtype=torch.float64)
    for grid in GRIDS.values():
        start = rtn(W, grid)
        compiled = descend(W, x.T @ x, start)
        with monkeypatch.context() as patched:
            patched.setattr("plumbline.quantized_model.descent.library", lambda: None)
            plain = descend(W, x.T @ x, start)
        assert torch.equal(compiled[0], plain[0]) and torch.equal(compiled[1], plain[1]), grid


def test_members_of_a_site_share_one_global_scale() -> None:
    g = torch.Generator().manual_seed(2)
    members = {"q": torch.randn(8, 32, generator=g), "k": 5 * torch.randn(4, 32, generator=g)}
    scheme = SchemeParams.model_validate({"method": "rtn", "weight_type": "nvfp4"})
    layers = quantize_site(members, None, GRIDS["nvfp4"], scheme)
    expected = torch.tensor([2688.0]) / max(W.abs().max() for W in members.values())
    for name, W in members.items():
        assert torch.equal(layers[name].weight.global_scale, expected)
        assert torch.equal(layers[name].weight.codes, rtn(W, GRIDS["nvfp4"], global_scale=expected).codes)


def test_members_of_a_site_share_an_fp8_scale_per_tensor() -> None:
    """vLLM merges them and rounds them again to the largest scale, which changes nothing if they have one."""
    members = {"q": torch.randn(13, 32), "k": 9 * torch.randn(4, 32)}
    layers = quantize_site(members, None, GRIDS["fp8-tensor"], SchemeParams.model_validate({"method": "rtn"}))
    scale = max(W.abs().max() for W in members.values()) / 448
    for member, W in members.items():
        weight = layers[member].weight
        assert weight.scale.item() == scale
        numbers = formats.nearest((W / scale).numpy(), formats.E4M3)
        assert np.array_equal(weight.grid.numbers.values(weight.codes.double()).numpy(), numbers)


def test_blocks_and_integers_per_tensor_are_not_stacked() -> None:
    members = {"q": torch.randn(130, 32), "k": 9 * torch.randn(4, 32)}
    for grid in (GRIDS["fp8-block"], Grid(8, per_tensor=True)):
        layers = quantize_site(members, None, grid, SchemeParams.model_validate({"method": "rtn"}))
        for member, W in members.items():
            assert torch.equal(layers[member].weight.scale, rtn(W, grid).scale)
        with pytest.raises(ValueError, match="rows share a scale"):
            layers["q"].weight.rows(0, 2)
    with pytest.raises(ValueError, match="blocks of rows"):
        rtn(members["q"], GRIDS["fp8-block"]).take(torch.tensor([0]))


def test_a_range_weighted_by_the_inputs_lowers_the_weighted_error() -> None:
    g = torch.Generator().manual_seed(5)
    W, importance = torch.randn(16, 64, generator=g), torch.rand(64, generator=g) ** 4
    for grid in (GRIDS["nvfp4"], Grid(4, 32), Grid(3)):
        by = {rule: dequantize(rtn(W, grid, rule, importance=importance)) for rule in ("minmax", "mse", "imatrix")}
        error = {rule: float((importance * (w.float() - W) ** 2).sum()) for rule, w in by.items()}
        assert error["imatrix"] < error["mse"] < error["minmax"], grid
