"""The factor of a Hessian, and when one may be used again."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plumbline.quantized_model import factors as module
from plumbline.quantized_model import solver
from plumbline.quantized_model.factors import Factor, Factors, factor
from plumbline.quantized_model.numbers import E2M1, E4M3, integers
from plumbline.quantized_model.solver import add_product, factor_backwards, solve_columns, solve_lower, wide_library

compiled = pytest.mark.skipif(wide_library() is None, reason="solver.c is not compiled here, or not for this processor")


def hessian(n: int, seed: int = 0) -> Tensor:
    x = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x


@pytest.fixture
def factored(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The Hessians that `Factors` factored, in order."""
    hessians: list[Tensor] = []

    def watched(S: Tensor, *arguments: Any) -> Factor | None:
        hessians.append(S)
        return factor(S, *arguments)

    monkeypatch.setattr(module, "factor", watched)
    return hessians


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "library", lambda: None)
    monkeypatch.setattr(solver, "wide_library", lambda: None)


@pytest.mark.parametrize("n", [1, 40, 128, 129, 300])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("implementation", ["compiled", "in_pytorch"])
def test_factor_is_that_of_the_damped_hessian(n, act_order, implementation, request) -> None:
    if implementation == "in_pytorch":
        request.getfixturevalue("in_pytorch")
    S = hessian(n)
    F = factor(S.clone(), 0.01, act_order)
    assert F is not None
    assert torch.equal(F.L, F.L.tril())
    assert torch.equal(F.L.diagonal(), torch.ones(n, dtype=torch.float64))
    H = S + 0.01 * S.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    if act_order:
        assert F.order is not None
        H = H[F.order][:, F.order]
        assert bool((H.diagonal().diff() <= 0).all())
    torch.testing.assert_close(F.L.T * F.D @ F.L, H, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("n", [1, module.PERMUTED_ROWS, 3 * module.PERMUTED_ROWS + 7])
def test_channels_are_put_into_order_beside_the_hessian_alone(n: int) -> None:
    S, order = hessian(n), torch.randperm(n, generator=torch.Generator().manual_seed(n))
    tracemalloc.start()
    try:
        H = module._permuted(S, order)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert torch.equal(H, S[order][:, order]) and H.is_contiguous()
    assert peak < (n + module.PERMUTED_ROWS) * n * 8 + 50_000


def test_the_hessian_is_left_as_it_was() -> None:
    S = hessian(40)
    before = S.clone()
    for act_order in (False, True):
        Factors().get(S, 0.01, act_order)
    assert torch.equal(S, before)


@compiled
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 450),
    depth=st.integers(1, 300),
    sign=st.sampled_from([1.0, -1.0]),
    turned=st.booleans(),
    margin=st.integers(0, 5),
)
def test_the_compiled_product_is_the_product_and_touches_nothing_else(m, n, depth, sign, turned, margin) -> None:
    g = torch.Generator().manual_seed(m * n)
    A = torch.randint(-9, 10, (depth, m) if turned else (m, depth), generator=g).double()
    A = A.T if turned else A
    B = torch.randint(-9, 10, (depth, n + margin), generator=g).double()[:, :n]
    whole = torch.randint(-9, 10, (m + 1, n + margin), generator=g).double()
    expected = whole.clone()
    expected[:m, :n] += sign * (A @ B)  # of integers: exact in any order
    add_product(whole[:m, :n], A, B, sign)
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("implementation", ["compiled", "in_pytorch"])
@pytest.mark.parametrize("n", [5, 256, 300, 700])
def test_a_lower_product_is_right_below_the_diagonal(n, implementation, request) -> None:
    if implementation == "in_pytorch":
        request.getfixturevalue("in_pytorch")
    P = torch.randint(-9, 10, (33, n), generator=torch.Generator().manual_seed(n)).double()
    C = torch.ones(n, n, dtype=torch.float64)
    add_product(C, P.T, P, -1.0, lower=True)
    assert torch.equal(C.tril(), (1 - P.T @ P).tril())


@compiled
def test_a_sum_has_the_same_order_wherever_it_stands() -> None:
    g = torch.Generator().manual_seed(0)
    A, B = (torch.randn(50, 300, generator=g, dtype=torch.float64) for _ in range(2))
    whole, part = torch.zeros(50, 50, dtype=torch.float64), torch.zeros(13, 30, dtype=torch.float64)
    add_product(whole, A, B.T.contiguous())
    add_product(part, A[21:34], B[9:39].T.contiguous())
    assert torch.equal(whole[21:34, 9:39], part)


@pytest.mark.parametrize("n", [1, 32, 128, 200, 300])
def test_triangular_systems_are_solved(n) -> None:
    g = torch.Generator().manual_seed(n)
    L = 0.1 * torch.randn(n, n, generator=g, dtype=torch.float64).tril(-1) + torch.eye(n, dtype=torch.float64)
    Z = torch.randn(n, 17, generator=g, dtype=torch.float64)
    torch.testing.assert_close(L @ solve_lower(L, Z.clone()), Z, rtol=1e-10, atol=1e-10)


@compiled
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 32),
    numbers=st.sampled_from([integers(2), integers(3), integers(4), integers(8), E4M3, E2M1]),
    symmetric=st.booleans(),
    bfloat16=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_columns_are_solved_to_the_same_bits_as_in_pytorch(rows, columns, numbers, symmetric, bfloat16, seed) -> None:
    from plumbline.quantized_model.gptq import _one_by_one

    g = torch.Generator().manual_seed(seed)
    W = torch.randn(columns, rows, generator=g).to(torch.bfloat16 if bfloat16 else torch.float32)
    B = W.double() + 0.1 * torch.randn(columns, rows, generator=g).double()
    L = torch.randn(columns + 3, columns + 3, generator=g).double()[:columns, :columns]
    s = (torch.rand(3, rows, generator=g) + 0.01).to(W.dtype).double()
    zeros = torch.randint(numbers.first, numbers.last + 1, (3, rows), generator=g).double()
    z = None if symmetric or numbers.mantissa is not None else zeros
    group = torch.randint(0, 3, (columns,), generator=g)
    found = []
    for solve in (_one_by_one, solve_columns):
        error, R, codes = B.clone(), torch.zeros_like(B), torch.zeros(columns, rows, dtype=torch.int8)
        solve(W, error, L, group, s, z, numbers, codes, R)
        found.append((error, R, codes))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_hessian_that_is_not_positive_definite_has_no_factor() -> None:
    S = hessian(200)
    S[150, 150] = -1.0
    assert factor_backwards(S) is None
    assert factor(-hessian(8), 0.01) is None


def test_a_factor_is_found_again_for_the_same_tensor_damping_and_order_only(factored) -> None:
    S, factors = hessian(24), Factors()
    first = factors.get(S, 0.01)
    assert factors.get(S, 0.01) is first
    assert factors.get(S, 0.02) is not first
    assert factors.get(S, 0.01, act_order=True) is not first
    assert factors.get(S.clone(), 0.01) is not first
    assert len(factored) == 4


@pytest.mark.parametrize("how", ["in place", "behind PyTorch's back", "with the same diagonal and sums"])
def test_a_hessian_that_has_changed_is_factored_anew(how) -> None:
    S, factors = hessian(24).round(), Factors()
    before = factors.get(S, 0.01)
    seen = S.numpy() if how == "behind PyTorch's back" else S  # which PyTorch's version counter does not notice
    for i, j, change in [(0, 1, 1), (1, 2, -1), (2, 3, 1), (3, 0, -1)][: 4 if how.startswith("with") else 1]:
        seen[i, j] += change
        seen[j, i] += change
    after, expected = factors.get(S, 0.01), factor(S, 0.01)
    assert before is not None and after is not None and expected is not None
    assert not torch.equal(before.L, after.L)
    assert torch.equal(after.L, expected.L)


def test_factors_go_with_their_hessian() -> None:
    S, factors = hessian(24), Factors()
    factors.get(S, 0.01)
    assert factors.bytes > 8 * 24 * 24
    del S
    gc.collect()
    other = hessian(8)
    factors.get(other, 0.01)
    assert factors.bytes < 8 * 24 * 24


def test_no_more_is_kept_than_allowed_and_what_is_kept_stays(factored) -> None:
    S = [hessian(24, seed) for seed in range(4)]
    one = Factors()
    one.get(S[0], 0.01)
    factors = Factors(max_bytes=2 * one.bytes)
    for _ in range(3):
        for hessian_of_a_site in S:
            factors.get(hessian_of_a_site, 0.01)
        assert factors.bytes == 2 * one.bytes
    assert len(factored) == 1 + 4 + 2 * 2
