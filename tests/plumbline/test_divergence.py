"""The divergence against the definition, computed by NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline import divergence
from plumbline.divergence import predict, token_divergence


def reference(base: torch.Tensor, quantized: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, ...]:
    p, q = (logits.double().numpy() for logits in (base, quantized))
    p, q = (x - x.max(-1, keepdims=True) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    rows = np.arange(len(p))
    kl = (np.exp(p) * (p - q)).sum(-1)
    agree = base.double().numpy().argmax(-1) == quantized.double().numpy().argmax(-1)
    return kl, -p[rows, targets.numpy()], -q[rows, targets.numpy()], agree


def check(base: torch.Tensor, quantized: torch.Tensor, targets: torch.Tensor, rtol: float, atol: float) -> None:
    found = token_divergence(predict(base, targets), quantized)
    kl, nll_base, nll_quantized, agree = reference(base, quantized, targets)
    np.testing.assert_allclose(found.kl, kl, rtol=rtol, atol=atol)
    np.testing.assert_allclose(found.nll_base, nll_base, rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(found.nll_quantized, nll_quantized, rtol=1e-6, atol=4e-6)
    np.testing.assert_array_equal(found.agree, agree)
    np.testing.assert_allclose(found.delta_p, np.exp(-nll_quantized) - np.exp(-nll_base), rtol=5e-5, atol=1e-6)
    assert found.kl.dtype == found.nll_base.dtype == found.nll_quantized.dtype == np.float64


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    vocabulary=st.integers(2, 300),
    spread=st.sampled_from([0.1, 3.0, 12.0]),
    noise=st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
    offset=st.sampled_from([0.0, 7.0, -30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_the_definition(seed, rows, vocabulary, spread, noise, offset, dtype):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, vocabulary, generator=generator) * spread
    quantized = base + torch.randn(rows, vocabulary, generator=generator) * noise + offset
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    check(base.to(dtype), quantized.to(dtype), targets, rtol=2e-5, atol=1e-7)


def test_keeps_its_precision_where_the_models_hardly_differ():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 4096, generator=generator) * 3 + 9
    quantized = base + torch.randn(64, 4096, generator=generator) * 1e-3
    found = token_divergence(predict(base, torch.zeros(64, dtype=torch.int64)), quantized).kl
    kl, *_ = reference(base, quantized, torch.zeros(64, dtype=torch.int64))
    assert 1e-7 < kl.mean() < 1e-6
    naive = torch.log_softmax(base, -1) - torch.log_softmax(quantized, -1)
    naive = (torch.softmax(base, -1) * naive).sum(-1).numpy()
    assert np.abs(found - kl).max() < 3e-9
    assert np.abs(found - kl).max() < np.abs(naive - kl).max() / 20


def test_keeps_the_digits_of_a_small_change_of_probability():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 128, generator=generator) * 3 + 9
    quantized = base + torch.randn(64, 128, generator=generator) * 1e-4
    targets = base.argmax(-1)
    _, nll_base, nll_quantized, _ = reference(base, quantized, targets)
    expected = np.exp(-nll_base) * np.expm1(nll_base - nll_quantized)
    found = token_divergence(predict(base, targets), quantized).delta_p
    assert 1e-6 < np.abs(expected).mean() < 1e-4
    assert np.abs(found - expected).max() < 1e-8


def test_huge_differences_are_computed_by_the_definition():
    base, quantized = torch.zeros(3, 8), torch.zeros(3, 8)
    base[0, 1], quantized[0, 2] = 500.0, 500.0  # p underflows where q is certain
    base[1, 3], quantized[1, 4] = 90.0, 95.0
    check(base, quantized, torch.tensor([1, 4, 0]), rtol=1e-9, atol=1e-9)


def test_chunks_do_not_change_a_row(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    base, quantized = torch.randn(2, 50, 64, generator=generator)
    targets = torch.randint(64, (50,), generator=generator)
    whole = token_divergence(predict(base, targets), quantized)
    monkeypatch.setattr(divergence, "CHUNK_BYTES", 7 * 64 * 4)
    parts = token_divergence(predict(base, targets), quantized)
    np.testing.assert_array_equal(whole.kl, parts.kl)
    np.testing.assert_array_equal(whole.nll_quantized, parts.nll_quantized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaves_the_logits_alone(dtype):
    base, quantized = torch.randn(2, 5, 16).to(dtype)
    before = base.clone(), quantized.clone()
    token_divergence(predict(base, torch.zeros(5, dtype=torch.int64)), quantized)
    assert torch.equal(base, before[0]) and torch.equal(quantized, before[1])


def test_ties_go_to_the_lowest_token():
    base = torch.tensor([[1.0, 1.0, 0.0]])
    targets = torch.tensor([0])
    assert token_divergence(predict(base, targets), torch.tensor([[2.0, 2.0, 0.0]])).agree.all()
    assert not token_divergence(predict(base, targets), torch.tensor([[1.9, 2.0, 0.0]])).agree.any()


def test_refuses_logits_that_are_not_finite():
    good, bad = torch.zeros(2, 4), torch.tensor([[0.0, 1.0, float("nan"), 0.0], [0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="quantized model gives 1 of 2"):
        token_divergence(predict(good, targets), bad)
    with pytest.raises(ValueError, match="base model gives 1 of 2"):
        predict(bad, targets)


def test_refuses_another_vocabulary():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 5\)"):
        token_divergence(predict(torch.zeros(2, 4), torch.tensor([0, 1])), torch.zeros(2, 5))
