"""GPTQ against a slow, independent version, and against rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from assets.quantized_model.factors import factor
from assets.quantized_model.gptq import gptq
from assets.quantized_model.grid import Grid, dequantize
from assets.quantized_model.rtn import rtn


def brain_surgeon(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int | None, damping: float
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal Brain Quantization with a fixed order (Frantar & Alistarh 2022, eq. 2 and 3): after each column the
    remaining weights take their optimal values, and its row and column leave the explicit inverse Hessian."""
    W = weight.double().numpy().copy()
    rows, columns = W.shape
    H = hessian.double().numpy().copy()
    Hinv = np.linalg.inv(H + damping * np.diag(H).mean() * np.eye(columns))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    width = group_size or columns
    codes, scales = np.zeros((rows, columns), np.int8), []
    for j in range(columns):
        if j % width == 0:
            scales.append((np.abs(W[:, j : j + width]).max(1) / ((high - low) / 2)).astype(np.float32))
        s = scales[-1].astype(np.float64)
        q = np.clip(np.rint(W[:, j] / s), low, high)
        codes[:, j] = q
        running = (q * s).astype(np.float32).astype(np.float64)
        W[:, j:] -= np.outer((W[:, j] - running) / Hinv[j, j], Hinv[j, j:])
        Hinv -= np.outer(Hinv[:, j], Hinv[j]) / Hinv[j, j]
    return codes, np.stack(scales, 1)


def problem(rows: int, columns: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=g)
    x = (torch.randn(tokens, columns, generator=g) @ mix).double()
    return torch.randn(rows, columns, generator=g), x.T @ x


def error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    delta = (weight - approximation).double()
    return float((delta @ hessian * delta).sum())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("columns", "group_size"), [(96, None), (96, 32), (172, 86), (60, 4)])
@pytest.mark.parametrize("block_size", [128, 32, 7])
def test_equals_the_slow_version_code_by_code(bits, columns, group_size, block_size) -> None:
    W, S = problem(24, columns, 400)
    solution = gptq(W, S, 400, Grid(bits, group_size), damping=0.01, block_size=block_size)
    codes, scales = brain_surgeon(W, S, bits, group_size, 0.01)
    assert np.array_equal(solution.weight.codes.numpy(), codes)
    assert np.array_equal(solution.weight.scale.numpy(), scales)
    assert (solution.damping, solution.fallback, solution.dead) == (0.01, None, 0)


def test_fewer_tokens_than_channels_equals_the_slow_version() -> None:
    W, S = problem(16, 80, 20)
    codes, _ = brain_surgeon(W, S, 4, None, 0.05)
    assert np.array_equal(gptq(W, S, 20, Grid(4, None), damping=0.05).weight.codes.numpy(), codes)


def test_stacked_members_are_solved_as_if_alone() -> None:
    W, S = problem(24, 64, 300)
    stacked = gptq(W, S, 300, Grid(4, 32)).weight
    for start, stop in ((0, 8), (8, 24)):
        alone = gptq(W[start:stop], S, 300, Grid(4, 32)).weight
        part = stacked.rows(start, stop)
        assert torch.equal(part.codes, alone.codes)
        assert torch.equal(part.scale, alone.scale)


def test_the_result_depends_on_the_hessian_up_to_a_factor_only() -> None:
    W, S = problem(8, 48, 200)
    assert torch.equal(gptq(W, S, 200, Grid(4, 16)).weight.codes, gptq(W, S * 1024, 200, Grid(4, 16)).weight.codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32])
def test_not_worse_than_round_to_nearest_on_real_activations(llama, seen, bits, group_size) -> None:
    gains = []
    for name, module in llama.named_modules():
        if name in seen and name != "lm_head" and (group_size is None or module.in_features % group_size == 0):
            W, S = module.weight.detach(), seen[name].hessian
            nearest = error(W, dequantize(rtn(W, Grid(bits, group_size))), S)
            solved = error(W, dequantize(gptq(W, S, len(seen[name].x), Grid(bits, group_size)).weight), S)
            assert solved <= nearest, name
            gains.append(solved / nearest)
    assert np.mean(gains) < 0.8


def test_a_channel_never_used_is_rounded_to_nearest_and_counted() -> None:
    W, S = problem(8, 32, 200)
    S[5], S[:, 5] = 0, 0
    solution = gptq(W, S, 200, Grid(4, None))
    assert solution.dead == 1
    assert torch.equal(solution.weight.codes[:, 5], rtn(W, Grid(4)).codes[:, 5])
    rest = [j for j in range(32) if j != 5]
    W[:, 5] = 0  # without that channel the others must come out the same, if their common scale does
    scale_unchanged = (rtn(W, Grid(4)).scale == solution.weight.scale).flatten()
    alone = gptq(W[:, rest].contiguous(), S[rest][:, rest], 200, Grid(4, None))
    assert scale_unchanged.any()
    assert torch.equal(solution.weight.codes[scale_unchanged][:, rest], alone.weight.codes[scale_unchanged])


def test_no_tokens_falls_back_by_name() -> None:
    W, _ = problem(8, 32, 10)
    solution = gptq(W, torch.zeros(32, 32), 0, Grid(4, 16))
    assert solution.fallback == "no tokens reached this layer"
    assert solution.damping is None
    assert torch.equal(solution.weight.codes, rtn(W, Grid(4, 16)).codes)


def test_damping_grows_until_positive_definite() -> None:
    W, S = problem(8, 32, 200)
    mean = float(S.diagonal().mean())
    eigenvalues, vectors = torch.linalg.eigh(S)
    eigenvalues[0] = -0.05 * mean
    indefinite = vectors @ torch.diag(eigenvalues) @ vectors.T
    solution = gptq(W, (indefinite + indefinite.T) / 2, 200, Grid(4, None), damping=0.01)
    assert solution.fallback is None
    assert solution.damping == pytest.approx(0.08)


@pytest.mark.parametrize("spoil", ["negative", "nan"])
def test_a_hopeless_hessian_falls_back_by_name(spoil: str) -> None:
    W, S = problem(8, 32, 200)
    if spoil == "negative":
        S = -S
    else:
        S[3, 3] = float("nan")
    solution = gptq(W, S, 200, Grid(4, 16))
    assert "not positive definite" in (solution.fallback or "")
    assert torch.equal(solution.weight.codes, rtn(W, Grid(4, 16)).codes)


def test_factor_is_that_of_the_damped_hessian() -> None:
    _, S = problem(4, 40, 200)
    F = factor(S, 0.01)
    assert F is not None
    assert torch.equal(F.L, F.L.tril())
    assert torch.equal(F.L.diagonal(), torch.ones(40, dtype=torch.float64))
    H = S + 0.01 * S.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(F.L.T * F.D @ F.L, H, rtol=1e-12, atol=1e-9)


def test_another_models_hessian_is_an_error() -> None:
    with pytest.raises(ValueError, match="another model's statistics"):
        gptq(torch.ones(4, 8), torch.eye(16), 10, Grid(4, None))
