"""Codes and numbers of FP8 and FP4 against PyTorch's casts, compressed-tensors, and the formats' bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.quantized_model.numbers import E2M1, E4M3, Numbers, integers
from tests.helpers import formats


@pytest.mark.parametrize(("numbers", "written_out"), [(E4M3, formats.E4M3), (E2M1, formats.E2M1)])
def test_codes_count_the_numbers_of_the_format(numbers: Numbers, written_out: np.ndarray) -> None:
    codes = torch.arange(numbers.first, numbers.last + 1, dtype=torch.float64)
    assert np.array_equal(numbers.values(codes).numpy(), written_out)
    assert torch.equal(numbers.nearest(numbers.values(codes)), codes)
    assert numbers.largest == written_out[-1]


@pytest.mark.parametrize(("numbers", "written_out"), [(E4M3, formats.E4M3), (E2M1, formats.E2M1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_even_code_and_what_lies_beyond_to_the_end(numbers, written_out, dtype) -> None:
    middles = (written_out[1:] + written_out[:-1]) / 2
    x = np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), [1e30, -1e30, 0.0]])
    x = torch.from_numpy(x).to(dtype)
    expected = formats.nearest(x.numpy(), written_out)
    assert np.array_equal(numbers.values(numbers.nearest(x)).numpy(), expected)
    assert np.array_equal(numbers.round_(x.float()).numpy(), formats.nearest(x.float().numpy(), written_out))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_rounding_is_that_of_pytorch_and_compressed_tensors(values: list[float]) -> None:
    x = torch.tensor(values)
    cast = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(E4M3.values(E4M3.nearest(x)), cast)
    assert torch.equal(E2M1.values(E2M1.nearest(x)), cast_to_fp4(x.clamp(-6, 6)))
    assert torch.equal(E4M3.round_(x.clone()), cast)
    assert torch.equal(E2M1.round_(x.clone()), cast_to_fp4(x.clamp(-6, 6)))


def test_integers_are_their_own_codes() -> None:
    x = torch.tensor([-9.0, -0.5, 0.5, 1.5, 99.0])
    assert integers(4).nearest(x).tolist() == [-8, 0, 0, 2, 7]
    assert integers(4).values(x) is x
