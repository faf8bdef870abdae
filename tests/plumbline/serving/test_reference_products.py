"""The arithmetic of the plugin, loaded with a stand-in for vLLM, against compressed-tensors."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from torch import Tensor
from torch.nn.functional import linear

ROWS, WIDTH = 24, 96


class Kernel:
    """Base class of vLLM's kernels, as far as the plugin uses it."""

    def __init__(self, config: Any, *names: str) -> None:
        self.config = config

    def _get_weight_params(self, layer: Any) -> tuple[Any, ...]:
        return layer.weight_packed, layer.weight_scale, layer.weight_zero_point

    def _get_layer_params(self, layer: Any) -> tuple[Any, ...]:
        return layer.weight, layer.weight_scale, layer.input_scale, getattr(layer, "input_zero_point", None), None


class Fp8Kernel(Kernel):
    def _get_layer_params(self, layer: Any) -> tuple[Any, ...]:
        return layer.weight, layer.weight_scale, layer.input_scale, None


def truncating(
    key: Tensor, value: Tensor, stored: list, k_scale: float = 1.0, v_scale: float = 1.0, kv_cache_dtype: str = "auto"
) -> None:
    """vLLM's function on a CPU: to the next number of E4M3 toward zero."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    for x, scale in ((key, k_scale), (value, v_scale)):
        if kv_cache_dtype == "auto":
            stored.append(x)
            continue
        size = (x.float().abs() / scale).clamp(max=448)
        stored.append(numbers[torch.searchsorted(numbers, size, right=True) - 1] * x.sign())


@pytest.fixture(scope="module")
def products() -> ModuleType:
    tables = ("", "_INT8", "_FP8", "_FP8_BLOCK")
    linear_module = ModuleType("vllm.model_executor.kernels.linear")
    for table in tables:
        setattr(linear_module, f"_POSSIBLE{table}_KERNELS", {"cpu": ["vLLM's own"]})
    linear_module._POSSIBLE_WFP8A16_KERNELS = {"cpu": []}
    for name in ("MPLinearKernel", "Int8ScaledMMLinearKernel"):
        setattr(linear_module, name, Kernel)
    linear_module.FP8ScaledMMLinearKernel = Fp8Kernel
    parent, platforms = ModuleType("vllm.model_executor.kernels"), ModuleType("vllm.platforms")
    parent.linear, platforms.PlatformEnum = linear_module, SimpleNamespace(CPU="cpu")
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.model_executor", "vllm._custom_ops")}
    modules["vllm"]._custom_ops = modules["vllm._custom_ops"]  # type: ignore[attr-defined]
    modules["vllm._custom_ops"].cpu_attn_reshape_and_cache = truncating  # type: ignore[attr-defined]
    modules |= {"vllm.model_executor.kernels": parent, "vllm.platforms": platforms}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        from plumbline.serving import reference_products

        return reference_products


def test_it_comes_before_vllms_own_kernels_once(products: ModuleType) -> None:
    products.register()
    products.register()
    assert products.kernels._POSSIBLE_KERNELS["cpu"] == [products.ReferencePacked, "vLLM's own"]
    assert products.kernels._POSSIBLE_FP8_BLOCK_KERNELS["cpu"] == [products.ReferenceFp8, "vLLM's own"]
    assert products.kernels._POSSIBLE_WFP8A16_KERNELS["cpu"] == [products.ReferenceFp8Weights]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [32, 96, 50, 7])
def test_codes_are_unpacked_without_gaps(products: ModuleType, bits: int, width: int) -> None:
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (5, width), generator=torch.Generator().manual_seed(bits), dtype=torch.int8)
    assert torch.equal(products.unpacked(pack_to_int32(codes, bits), bits, width) - half, codes.long())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
def test_packed_weights(products: ModuleType, bits: int, zero_points: bool) -> None:
    torch.manual_seed(0)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (ROWS, WIDTH), dtype=torch.int8)
    zero = torch.randint(-half, half, (ROWS, 3), dtype=torch.int8) if zero_points else torch.zeros(ROWS, 3).char()
    scale, x = torch.rand(ROWS, 3) + 0.1, torch.randn(2, 4, WIDTH)
    packed_zero = pack_to_int32(zero, bits, packed_dim=0) if zero_points else None
    layer = SimpleNamespace(weight_packed=pack_to_int32(codes, bits), weight_scale=scale, weight_zero_point=packed_zero)
    config = SimpleNamespace(
        weight_type=SimpleNamespace(size_bits=bits), partition_weight_shape=(WIDTH, ROWS), zero_points=zero_points
    )
    kernel = products.ReferencePacked(config)
    kernel.process_weights_after_loading(layer)
    dense = ((codes.view(ROWS, 3, -1).float() - zero.float()[..., None]) * scale[..., None]).view(ROWS, WIDTH)
    assert torch.equal(kernel.apply_weights(layer, x), linear(x, dense))


def test_w4a8_is_left_to_vllm(products: ModuleType) -> None:
    for signed in (False, True):
        config = SimpleNamespace(weight_type=SimpleNamespace(is_signed=lambda signed=signed: signed))
        assert products.ReferencePacked.can_implement(config)[0] is not signed


def fake_quantized(x: Tensor, scale: Tensor, zero: Tensor, **args: Any) -> Tensor:
    return fake_quantize(x, scale, zero, QuantizationArgs(**args))


@pytest.mark.parametrize("zero", [0, 17])
def test_static_8_bit_integers(products: ModuleType, zero: int) -> None:
    torch.manual_seed(0)
    weight, scale = torch.randint(-128, 128, (ROWS, WIDTH), dtype=torch.int8), torch.rand(ROWS, 1) / 100
    x, input_scale, bias = torch.randn(5, WIDTH), torch.tensor([0.02]), torch.randn(ROWS)
    layer = SimpleNamespace(
        weight=weight,
        weight_scale=scale,
        input_scale=input_scale,
        input_zero_point=torch.tensor([zero], dtype=torch.int8),
    )
    kernel = products.ReferenceInt8(SimpleNamespace(is_channelwise=True))
    kernel.process_weights_after_loading(layer)
    rounded = fake_quantized(x, input_scale, torch.tensor([zero]), num_bits=8, strategy="tensor", symmetric=zero == 0)
    expected = linear(rounded, weight * scale, bias)
    torch.testing.assert_close(kernel.apply_weights(layer, x, bias), expected, rtol=1e-5, atol=1e-5)


def test_dynamic_8_bit_integers_divide_by_127_as_vllm_does(products: ModuleType) -> None:
    x = torch.tensor([[127.0, 63.4, -1.6]])
    layer = SimpleNamespace(weight=torch.eye(3).char(), weight_scale=torch.ones(3, 1), input_scale=None)
    kernel = products.ReferenceInt8(SimpleNamespace(is_channelwise=True))
    kernel.process_weights_after_loading(layer)
    assert kernel.apply_weights(layer, x).tolist() == [[127.0, 63.0, -2.0]]


@pytest.mark.parametrize("strategy", ["tensor", "token", "group"])
def test_fp8(products: ModuleType, strategy: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(ROWS, WIDTH).to(torch.float8_e4m3fn)
    x, scale = torch.randn(5, WIDTH), torch.rand(ROWS, 1)
    if strategy == "group":
        scale, block, size = torch.rand(3, 3), [8, 32], 32
        dense = weight.float() * scale.repeat_interleave(8, 0).repeat_interleave(32, 1)
    else:
        block, size, dense = None, WIDTH, weight.float() * scale
    input_scale = torch.tensor(0.004) if strategy == "tensor" else None
    groups = x.view(5, -1, size)
    steps = input_scale if input_scale is not None else groups.abs().amax(-1, keepdim=True) / 448
    rounded = ((groups / steps).clamp(-448, 448).to(torch.float8_e4m3fn).float() * steps).view(5, WIDTH)
    stored = weight if block else weight.t()
    layer = SimpleNamespace(weight=stored, weight_scale=scale, input_scale=input_scale, weight_block_size=block)
    for kernel, expected in ((products.ReferenceFp8, rounded), (products.ReferenceFp8Weights, x)):
        made = kernel(SimpleNamespace(), ())
        made.process_weights_after_loading(layer)
        torch.testing.assert_close(made.apply_weights(layer, x), linear(expected, dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_and_values_are_rounded_before_vllm_truncates_them(products: ModuleType, dtype: torch.dtype) -> None:
    products.register()
    store = products._custom_ops
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.empty(4000).uniform_(-9, 7, generator=generator))
    x = (size * torch.where(torch.rand(4000, generator=generator) < 0.5, -1, 1)).to(dtype)
    stored: list[Tensor] = []
    store.cpu_attn_reshape_and_cache(x, -x, stored, k_scale=0.37, v_scale=0.0125, kv_cache_dtype="fp8")
    for codes, scale, sign in zip(stored, (0.37, 0.0125), (1, -1), strict=True):
        expected = (sign * x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        assert torch.equal(codes, expected) and len(codes.unique()) > 100
    stored.clear()
    store.cpu_attn_reshape_and_cache(x, x, stored, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")
    assert stored[0] is x
