"""The arithmetic of the statistics against numpy in float64, in both implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plumbline.activation_stats import kernel
from plumbline.histogram import bucket, n_buckets

CPU = torch.device("cpu")


WAYS = {"avx512": kernel.WITH_AVX512, "avx2": kernel.WITH_AVX2, "torch": 0}
BEST = kernel.level()


def use(way: str, patch: pytest.MonkeyPatch) -> None:
    """Have the arithmetic done by kernel.c with certain instructions, or by PyTorch."""
    if WAYS[way] > BEST:
        pytest.skip("kernel.c is not compiled, or this CPU lacks the instructions")
    if way == "torch":
        patch.setattr(kernel, "library", lambda: None)
    patch.setattr(kernel, "level", lambda: WAYS[way])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with kernel.c, with all instructions and with fewer, and without."""
    use(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=[name for name in WAYS if name != "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with kernel.c alone."""
    use(request.param, monkeypatch)
    return str(request.param)


def randn(tokens: int, width: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    return (x + torch.linspace(-1, 1, width)).to(dtype)  # some channels have a mean, where errors add up


def relative_error(found: Tensor, x: Tensor) -> float:
    """Largest error of an entry of S relative to sqrt(S_ii S_jj)."""
    X = x.double().numpy()
    S = torch.from_numpy(X.T @ X)
    scale = S.diag().outer(S.diag()).sqrt()
    return float(((found - S).abs() / scale.where(scale > 0, 1.0)).max())


def hessian(x: Tensor, weight: float = 1.0) -> Tensor:
    total = kernel.HessianSums(x.shape[1], x.dtype, x.device)
    total.add(x, weight)
    return total.result()


BOTH = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("width", [1, 7, 43, 48, 64, 172, 688])
@pytest.mark.parametrize("tokens", [1, 2, 3, 511, 2049])
def test_hessian(way: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    x = randn(tokens, width, dtype)
    found = hessian(x)
    assert relative_error(found, x) <= (1e-6 if way != "torch" else 5e-6)
    assert torch.equal(found, found.T)
    error = (hessian(x, 0.37) - 0.37 * found).abs()
    assert float((error / found.diag().outer(found.diag()).sqrt()).max()) <= 1e-15  # weighed in float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_in_pytorch_are_exact_at_a_size_where_matrix_units_are_used(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU multiplies small matrices in another way. 3000 rows are more than one product takes."""
    monkeypatch.setattr(kernel, "library", lambda: None)
    x = torch.randn(3000, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    precisions = []

    class Watch(TorchDispatchMode):
        """Which precision a processor makes use of differs, so the one that is allowed is looked at as well."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                precisions.append(torch.backends.mkldnn.matmul.fp32_precision)
            return function(*args, **(kwargs or {}))

    with Watch():
        found = hessian(x)
    assert precisions == ["bf16" if dtype == torch.bfloat16 else "ieee"] * 2
    assert relative_error(found, x) <= 3e-6


def test_bits_depend_on_neither_threads_nor_what_else_waits(compiled: str) -> None:
    """Samples that fill the buffer unevenly, one of them longer than it; read after each one, and at the end."""
    parts = [randn(tokens, 172, seed=tokens) for tokens in (700, 1, 511, 900, 5, 4500, 3, 2048, 33)]
    weights = [1 / len(x) for x in parts]
    together = kernel.HessianSums(172, torch.bfloat16, CPU)
    one_by_one = torch.zeros(172, 172, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        for x, weight in zip(parts, weights, strict=True):
            together.add(x, weight)
        for x, weight in zip(parts, weights, strict=True):
            torch.set_num_threads(1 if before > 1 else 3)
            alone = kernel.HessianSums(172, torch.bfloat16, CPU)
            alone.totals[0] = one_by_one
            alone.add(x, weight)
            one_by_one = alone.result()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together.result(), one_by_one)


@pytest.mark.parametrize("dtype", BOTH)
def test_what_is_added_for_several_totals_is_what_each_would_get_alone(compiled: str, dtype: torch.dtype) -> None:
    into = [(0, 2), (1,), (0, 1, 2), (2,), (0,)]
    parts = [randn(tokens, 43, dtype, tokens) for tokens in (300, 7, 1500, 900, 12)]
    together = kernel.HessianSums(43, dtype, CPU)
    for x, numbers in zip(parts, into, strict=True):
        together.add(x, 1.0, numbers)
    for number in range(3):
        alone = kernel.HessianSums(43, dtype, CPU)
        for x, numbers in zip(parts, into, strict=True):
            if number in numbers:
                alone.add(x)
        assert torch.equal(together.result(number), alone.result())


AWKWARD = [0.0, -0.0, 1.0, -1.0, 2.5, -7.0, 1e-39, -1e-40, 1e-9, 3e7, -3e7, 3e38, -1e-20]


@st.composite
def activations(draw: st.DrawFn) -> Tensor:
    """Widths and lengths around those of vectors, panels and segments; zeros, subnormals and huge values."""
    tokens = draw(st.sampled_from([1, 2, 3, 31, 255, 256, 257, 511]))
    width = draw(st.sampled_from([1, 7, 15, 16, 17, 31, 33, 43, 47, 48, 49, 64, 97]))
    seed = draw(st.integers(0, 2**31))
    x = randn(tokens, width, draw(st.sampled_from(BOTH)), seed)
    awkward = torch.tensor(AWKWARD, dtype=x.dtype)
    generator = torch.Generator().manual_seed(seed)
    chosen = awkward[torch.randint(len(awkward), x.shape, generator=generator)]
    return torch.where(torch.rand(x.shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 1.0])), chosen, x)


def check_columns(x: Tensor, bits: int, counted: Tensor | None) -> Tensor:
    counts = torch.ones(x.shape[1], n_buckets(bits), dtype=torch.int32)
    found = kernel.columns(x, counts, bits, counted)
    X = x.double().numpy()
    assert found.low.tolist() == X.min(0).tolist() and found.high.tolist() == X.max(0).tolist()
    assert not ((found.low == 0) & found.low.signbit()).any() and not ((found.high == 0) & found.high.signbit()).any()
    magnitude, square = abs(X).sum(0), (X**2).sum(0)
    assert (abs(found.sums[0].numpy() - X.sum(0)) <= 1e-13 * magnitude).all()
    assert (abs(found.sums[1].numpy() - magnitude) <= 1e-13 * magnitude).all()
    assert (abs(found.sums[2].numpy() - square) <= 1e-13 * square).all()
    expected = torch.ones_like(counts)
    numbers = bucket(x if counted is None else x[counted], bits).long().numpy()
    np.add.at(expected.numpy(), (np.arange(x.shape[1]), numbers), 1)
    assert torch.equal(counts, expected)
    return found.sums


@settings(deadline=None, max_examples=60)
@given(activations(), st.integers(0, 7), st.booleans())
def test_columns(x: Tensor, bits: int, share: bool) -> None:
    counted = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.3 if share else None
    sums = []
    for way, level in WAYS.items():
        if level <= BEST:
            with pytest.MonkeyPatch.context() as patch:
                use(way, patch)
                sums.append(check_columns(x, bits, counted))
    for found in sums[1:-1]:  # PyTorch sums in another order
        assert torch.equal(found, sums[0])


def test_every_bfloat16_is_counted_where_the_definition_puts_it(way: str) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    check_columns(x[torch.isfinite(x)].view(-1, 32), 7, None)


def test_the_bits_of_float32_that_bfloat16_drops_count(way: str) -> None:
    """In extremes and sums; a bucket is told by the leading bits, so that what lies next to an edge stays before it."""
    ones = torch.ones(64, 48)
    x = torch.where(
        torch.arange(64)[:, None] % 2 == 0, torch.nextafter(ones, 0 * ones), torch.nextafter(ones, 2 * ones)
    )
    check_columns(x, 4, None)
    check_columns(-x, 7, None)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_what_is_not_finite_shows_in_the_extremes(way: str, value: float, dtype: torch.dtype) -> None:
    for channel in (0, 17, 42):
        x = randn(33, 43, dtype)
        x[7, channel] = torch.tensor(value).copysign(torch.tensor(value)).to(dtype)
        found = kernel.columns(x, torch.zeros(43, n_buckets(4), dtype=torch.int32), 4)
        finite = found.low.isfinite() & found.high.isfinite()
        assert (~finite).nonzero().flatten().tolist() == [channel]


def largest(parts: list[tuple[Tensor, Tensor]], k: int) -> list[tuple[float, int, int]]:
    into = kernel.Largest(
        torch.zeros(k), torch.full((k,), -1, dtype=torch.int32), torch.full((k,), -1, dtype=torch.int32)
    )
    for x, positions in parts:
        kernel.add_largest(into, x, x.float().abs().amax(dim=0), positions)
    return list(zip(into.values.tolist(), into.positions.tolist(), into.channels.tolist(), strict=True))


@settings(deadline=None, max_examples=80)
@given(activations(), st.integers(1, 12), st.booleans(), st.integers(0, 2**31))
def test_the_largest_magnitudes_with_ties_by_position_then_channel(x: Tensor, k: int, coarse: bool, seed: int) -> None:
    if coarse:
        x = (x.clamp(-3, 3) * 2).round() / 2  # few values: mostly ties
    positions = torch.randperm(2 * len(x), generator=torch.Generator().manual_seed(seed))[: len(x)]
    cut = len(x) // 3  # the rows come in two parts, as those of a layer that runs twice
    parts = [(part, place) for part, place in ((x[:cut], positions[:cut]), (x[cut:], positions[cut:])) if len(part)]
    values = x.double().numpy().ravel()
    rows, channels = np.divmod(np.arange(x.numel()), x.shape[1])
    order = np.lexsort((channels, positions.numpy()[rows], -abs(values)))[:k]
    expected = [(float(values[i]), int(positions[rows[i]]), int(channels[i])) for i in order]
    expected += [(0.0, -1, -1)] * (k - len(expected))
    assert largest(parts, k) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "library", lambda: None)
        assert largest(parts, k) == expected


def test_mirrored(way: str) -> None:
    for width in (1, 7, 32, 33, 172):
        S = torch.arange(float(width * width), dtype=torch.float64).view(width, width)
        assert torch.equal(kernel.mirrored(S.clone()), S.triu() + S.triu(1).T)
