"""The grid against compressed-tensors' own arithmetic."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.numbers import code_range
from plumbline.quantized_model.rtn import rtn


def weight(seed: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (values * torch.logspace(-3, 1, rows).unsqueeze(1)).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 4),
    size=st.sampled_from([1, 5, 32, 43]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_rtn_scales_are_those_of_compressed_tensors(seed, bits, groups, size, dtype) -> None:
    w = weight(seed, 6, groups * size, dtype)
    args = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=size)
    grouped = w.view(6, groups, size)
    scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    assert torch.equal(rtn(w, Grid(bits, size)).scale, scale)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4, 8]), size=st.sampled_from([None, 5, 20]))
def test_rtn_weights_are_those_of_compressed_tensors(seed, bits, size) -> None:
    w = weight(seed, 6, 40, torch.float32)
    quantized = rtn(w, Grid(bits, size))
    strategy = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=True, **strategy)
    assert torch.equal(dequantize(quantized), fake_quantize(w, quantized.scale, None, args))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stay_in_range_and_miss_by_half_a_step_at_most(bits: int) -> None:
    w = weight(0, 6, 40, torch.float32)
    quantized = rtn(w, Grid(bits, 20))
    low, high = code_range(bits)
    assert low <= int(quantized.codes.min()) < 0 < int(quantized.codes.max()) == high
    step = quantized.scale.repeat_interleave(20, dim=1)
    assert ((dequantize(quantized) - w).abs() <= step * 0.5001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    quantized = rtn(torch.zeros(2, 8, dtype=torch.bfloat16), Grid(4, 4))
    assert torch.isfinite(quantized.scale).all()
    assert torch.equal(dequantize(quantized), torch.zeros(2, 8, dtype=torch.bfloat16))


def test_group_size_must_divide() -> None:
    with pytest.raises(ValueError, match="does not divide the width 10"):
        rtn(torch.ones(2, 10), Grid(4, 4))
