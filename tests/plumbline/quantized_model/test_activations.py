"""Static ranges from stored statistics against the raw activations; rounding against compressed-tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams

from plumbline.activation_stats.sketch import SiteStats
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.activations import (
    activation_range,
    activation_scale,
)
from plumbline.quantized_model.grid import Grid, QuantizedWeight
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.numbers import code_range
from plumbline.quantized_model.quantization_config import activation_args
from plumbline.quantized_model.ranges import SHRINKS
from plumbline.quantized_model.simulate import rounding
from tests.helpers.activations import statistics_of
from tests.helpers.tiny_models import tiny_llama

DTYPES = [torch.float32, torch.bfloat16]
LAYER = "model.layers.1.mlp.down_proj"


def site_and_values(dtype: torch.dtype, mantissa_bits: int) -> tuple[SiteStats, np.ndarray]:
    """The statistics of one site and every value that they were made of, float64."""
    model = tiny_llama(dtype)
    tokens = torch.randint(0, 96, (8, 48), generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    stats = statistics_of(model, tokens, mantissa_bits=mantissa_bits)
    handle = model.get_submodule(LAYER).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for row in tokens:
            model(row[None])
    handle.remove()
    return stats.sites[LAYER], torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double().numpy().ravel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_minmax_is_the_exact_range_and_holds_zero(dtype: torch.dtype) -> None:
    site, x = site_and_values(dtype, 4)
    assert activation_range(site, ActivationParams()) == (x.min(), x.max())
    positive = replace(site, sample_min=site.sample_max.abs() + 1, sample_max=site.sample_max.abs() + 2)
    assert activation_range(positive, ActivationParams())[0] == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 100.0])
def test_percentiles_are_those_of_the_raw_values(dtype: torch.dtype, percentile: float) -> None:
    site, x = site_and_values(dtype, 4)
    low, high = activation_range(site, ActivationParams(range="percentile", percentile=percentile))
    absmax = np.percentile(np.abs(x), percentile, method="inverted_cdf")
    assert max(-low, high) == pytest.approx(absmax, rel=2**-5)
    both = ActivationParams(range="percentile", percentile=percentile, symmetric=False)
    low, high = activation_range(site, both)
    assert high == pytest.approx(np.percentile(x, (100 + percentile) / 2, method="inverted_cdf"), rel=2**-5)
    assert low == pytest.approx(np.percentile(x, (100 - percentile) / 2, method="inverted_cdf"), rel=2**-5)
    if percentile == 100:
        assert (low, high) == (x.min(), x.max())


def raw_error(x: np.ndarray, low: float, high: float, symmetric: bool, dtype: torch.dtype) -> float:
    """Mean squared error of the values themselves, in NumPy's float64."""
    first, last = code_range(8)
    exact = 2 * max(-low, high) / (last - first) if symmetric else (high - low) / (last - first)
    scale = float(torch.tensor(exact, dtype=torch.float64).to(dtype))
    zero = 0.0 if symmetric else float(np.clip(np.round(first - low / scale), first, last))
    return float(((np.clip(np.round(x / scale + zero), first, last) - zero) * scale - x).__pow__(2).mean())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mantissa_bits", [4, 7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_mse_range_is_as_good_as_the_best_by_the_raw_values(dtype, mantissa_bits, symmetric) -> None:
    site, x = site_and_values(dtype, mantissa_bits)
    low, high = activation_range(site, ActivationParams(range="mse", symmetric=symmetric))
    errors = [raw_error(x, x.min() * p, x.max() * p, symmetric, dtype) for p in SHRINKS]
    found = raw_error(x, low, high, symmetric, dtype)
    exact = mantissa_bits == 7 and dtype == torch.bfloat16  # then a bucket is a value
    assert found <= min(errors) * (1 + 1e-9 if exact else 1.02)
    assert found < 0.95 * errors[0], "these activations have a tail: the whole range is not the best"


def test_statistics_without_a_histogram_are_refused() -> None:
    site, _ = site_and_values(torch.float32, 4)
    empty = replace(site, histogram=replace(site.histogram, counts=site.histogram.counts[:, :0]))
    for rule in ("percentile", "mse"):
        with pytest.raises(ValueError, match="no histogram.*range: minmax"):
            activation_range(empty, ActivationParams.model_validate({"range": rule}))
    assert activation_range(empty, ActivationParams()) == activation_range(site, ActivationParams())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_range_must_be_finite(value: float) -> None:
    site, _ = site_and_values(torch.float32, 4)
    broken = replace(site, sample_max=torch.full_like(site.sample_max, value))
    with pytest.raises(ValueError, match="finite range"):
        activation_range(broken, ActivationParams())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_static_scales_are_those_of_compressed_tensors(dtype: torch.dtype, symmetric: bool) -> None:
    x = (torch.randn(4, 33, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype)
    args = QuantizationArgs(num_bits=8, symmetric=symmetric, strategy="tensor")
    low, high = x.amin(), x.amax()
    expected, expected_zero = calculate_qparams(low, high, args)
    scale, zero = activation_scale(float(low), float(high), ActivationParams(symmetric=symmetric), dtype)
    assert torch.equal(scale, expected)
    assert symmetric or abs(int(zero) - int(expected_zero)) <= 1  # theirs is rounded in bfloat16


def rounded(x: torch.Tensor, params: ActivationParams, layer: Layer) -> np.ndarray:
    """What the hook of the simulation makes of x."""
    (result,) = rounding(activation_args(params), layer)(torch.nn.Linear(1, 1), (x,))
    return result.double().numpy()


NOTHING = Layer(QuantizedWeight(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1, 1), Grid(8)), None, None)


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_rounding_clips_to_the_range(symmetric: bool) -> None:
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)) + 0.5
    params = ActivationParams(symmetric=symmetric)
    scale, zero = activation_scale(float(x.min()) / 2, float(x.max()) / 2, params, x.dtype)
    layer = replace(NOTHING, input_scale=scale, input_zero_point=None if symmetric else zero)
    s, z = scale.double().numpy(), 0 if symmetric else zero.double().numpy()
    expected = (np.clip(np.round((x / scale).double().numpy() + z), *code_range(8)) - z) * s
    assert rounded(x, params, layer) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_every_token_has_a_scale_of_its_own() -> None:
    x = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(0))
    s = x.abs().amax(-1, keepdim=True) / 127.5
    expected = np.clip(np.round((x / s).double().numpy()), *code_range(8)) * s.double().numpy()
    assert rounded(x, ActivationParams(dynamic=True), NOTHING) == pytest.approx(expected, rel=1e-6, abs=1e-12)
