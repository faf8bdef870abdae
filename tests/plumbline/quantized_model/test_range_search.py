"""The search for scales: range_search.c and PyTorch give the same bits, and both what a brute force in float64 does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from plumbline.quantized_model import range_search
from plumbline.quantized_model.grid import Grid, global_scale_of, multiplier, scale_and_zero
from plumbline.quantized_model.range_search import BLOCK, LANES, least_error
from plumbline.quantized_model.ranges import FLOAT_SHARES, OCTAVES, SHARES, SHRINKS

needs_library = pytest.mark.skipif(range_search.library() is None, reason="range_search.c is not compiled")
GRIDS: dict[str, tuple[Grid, tuple[float, ...], bool]] = {
    "signed": (Grid(4), SHARES, True),
    "symmetric": (Grid(3), SHRINKS, False),
    "zero points": (Grid(4, symmetric=False), SHARES, False),
    "8 bits": (Grid(8, symmetric=False), SHRINKS, False),
    "E4M3": (Grid(8, type="float"), FLOAT_SHARES, False),
    "NVFP4": (Grid(4, type="float", scale_format="e4m3"), FLOAT_SHARES, False),
    "MXFP4": (Grid(4, type="float", scale_format="e8m0"), OCTAVES, False),
}
SIZES = (1, LANES - 1, LANES, LANES + 1, 64, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 40)


def searched(
    values: Tensor, weights: Tensor | None, name: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    grid, shares, signed = GRIDS[name]
    shared = global_scale_of(values) if grid.is_two_level else None
    return least_error(values, values.amin(-1), values.amax(-1), weights, shares, grid, signed, dtype, shared)


def sample(groups: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values of many magnitudes, zeros among them, and weights of three rows."""
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(groups, size, generator=generator) * torch.logspace(-6, 3, groups).unsqueeze(1)
    values[0] = 0
    values[1, 0] = 0
    return values.to(dtype), torch.rand(3, size, generator=generator).to(dtype)


@needs_library
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighted", [True, False])
def test_compiled_and_plain_search_give_the_same_bits(
    name: str, size: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in (torch.float32, torch.float64) if GRIDS[name][0].type == "int" else (torch.float32,):
        values, weights = sample(11, size, dtype)
        found = {}
        for search in ("compiled", "plain"):
            with monkeypatch.context() as patch:
                patch.setattr(range_search, "CHUNK", 4 * size)  # several rounds, the last one shorter
                if search == "plain":
                    patch.setattr(range_search, "library", lambda: None)
                found[search] = searched(values, weights if weighted else None, name, torch.bfloat16)
        assert all(map(torch.equal, found["compiled"], found["plain"]))


@needs_library
def test_compiled_errors_are_plain_ones_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one candidate against another that is worse by the last bit of the sum, both searches take the better one."""
    values, weights = sample(11, 2 * BLOCK + 40, torch.float32)
    s = torch.rand(2, 11, generator=torch.Generator().manual_seed(0)) + 0.5
    s[1] = torch.nextafter(s[0], torch.tensor(2.0))  # next to equal
    for numbers in (GRIDS["signed"][0].numbers, GRIDS["NVFP4"][0].numbers):
        assert torch.equal(
            range_search._compiled(values, weights, 5, s, None, numbers),
            range_search._plain(values, weights, 5, s, None, numbers),
        )


@pytest.mark.parametrize("name", GRIDS)
def test_the_scale_is_the_best_of_all_candidates(name: str) -> None:
    grid, shares, signed = GRIDS[name]
    values, weights = sample(11, 48, torch.float32)
    shared = global_scale_of(values) if grid.is_two_level else None
    found, zero = searched(values, weights, name)
    for row, w in enumerate(values):
        errors = []
        for sign in (1, -1) if signed else (1,):
            for share in shares:
                s, z = scale_and_zero(w.amin() * share, w.amax() * share, grid, torch.float32, shared)
                errors.append(_error(w, weights[row % 3], s * sign, z, grid, shared))
        assert _error(w, weights[row % 3], found[row], zero[row], grid, shared) <= min(errors) * (1 + 1e-5)


def _error(w: Tensor, v: Tensor, s: Tensor, z: Tensor, grid: Grid, shared: Tensor | None) -> float:
    """In float64, the numbers of the grid one by one."""
    first, last = grid.numbers.first, grid.numbers.last
    numbers = grid.numbers.values(torch.arange(first, last + 1).float()).double().numpy()
    step = float(multiplier(s, shared))
    x = w.double().numpy()
    running = (numbers - float(z)) * step
    return float((v.double().numpy() * np.min(np.abs(x[:, None] - running[None]), axis=1) ** 2).sum())


def test_of_equal_candidates_the_first_wins() -> None:
    values = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    scale, _ = least_error(
        values, values.amin(-1), values.amax(-1), None, (1.0, 1.0, 0.5), Grid(8), True, torch.float32, None
    )
    assert (scale > 0).all()
