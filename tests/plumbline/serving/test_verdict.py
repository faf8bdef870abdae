"""What passes, what fails, and what this machine cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plumbline.serving.comparison import RunDifference
from plumbline.serving.verdict import Measurements, lacking_kernel


def of_mean(mean: float) -> RunDifference:
    return RunDifference(mean, 10 * mean, 0.0, 0.0, 1.0, 20, 20, 1000)


def measured(**means: float) -> Measurements:
    """Weight-only quantization in float32: engines agree, quantization moves 0.1."""
    usual = {"engines": 1e-6, "engines_on_base": 1e-6, "noise": 1e-6, "simulated": 0.1, "served": 0.1}
    return Measurements(**{name: of_mean(mean) for name, mean in (usual | means).items()})


@pytest.mark.parametrize(
    ("means", "passed"),
    [
        ({}, True),
        ({"engines": 0.0249}, True),  # adds 3 % to what quantization moves
        ({"engines": 0.0251}, False),
        ({"engines": 0.05}, False),
        ({"engines": 0.05, "engines_on_base": 0.03, "served": 0.139}, True),  # bfloat16
        ({"engines": 0.05, "noise": 0.03}, True),  # rounded activations
        ({"engines": 0.05, "noise": 0.03, "served": 0.12}, False),  # ... and it lies farther off than simulated
        ({"engines": 0.11, "engines_on_base": 0.11}, False),  # an engine that computes another model altogether
        ({"served": 0.116}, False),
        ({"served": 0.02}, True),  # nearer to the base model than simulated: no harm
    ],
)
def test_the_limits(means: dict[str, float], passed: bool) -> None:
    assert measured(**means).passed is passed


def test_the_sentence_names_the_numbers_that_decide() -> None:
    assert "0.030 nats a token (mean), more than the 0.025 that" in measured(engines=0.03).sentence
    assert "moves 0.200 nats a token away from the base model, simulated were 0.100" in measured(served=0.2).sentence
    assert "by 0.300 nats a token (mean) before quantization already" in measured(engines_on_base=0.3).sentence
    chaotic = measured(engines=0.05, noise=0.04)
    assert "noise in the last bits alone moves 0.040" in chaotic.sentence and chaotic.passed
    assert (
        measured().sentence == "vLLM differs from transformers by 1e-06 nats a token (mean); quantization moves 0.100"
    )


def test_quantization_that_moves_nothing_does_not_excuse_the_engine() -> None:
    assert not measured(engines=0.01, simulated=0.0, served=0.0).passed
    assert measured(engines=1e-6, simulated=0.0, served=0.0).passed


NO_OPERATOR = "AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'"
NO_FLOAT = """NotImplementedError: "cpu_gemm_wna16" not implemented for 'Float'"""
NO_KERNEL = """ValueError: Failed to find a kernel that can implement the WNA16 linear layer. Reasons:
 Dynamic4bitLinearKernel cannot implement due to: Unsupported quant type uint3b4
 CPUWNA16LinearKernel cannot implement due to: Quant type (uint3b4) not supported by CPUWNA16"""


@pytest.mark.parametrize(
    ("error", "kernels", "cpu", "expected"),
    [
        (NO_OPERATOR, {}, {"avx512": False}, "this machine lacks the kernel for 4-bit weights (AVX-512)"),
        (NO_FLOAT, {}, {"avx512": True}, "vLLM's kernel for 4-bit weights on a CPU computes in bfloat16"),
        (NO_KERNEL, {}, {"avx512": True}, "vLLM has no kernel for it on this CPU (CPUWNA16LinearKernel"),
        ("RuntimeError: _C::static_scaled_fp8_quant() expected at most 0", {}, {}, "vLLM 0.32 has no static FP8"),
        ("NotImplementedError: No compressed-tensors compatible scheme was", {}, {}, "vLLM does not take this format"),
        ("ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: x", {}, {}, "vLLM has no kernel"),
        ("", {"CPUInt8ScaledMMLinearKernel": 24}, {"vnni": False}, "this machine lacks the kernel for 8-bit products"),
        ("", {"CPUInt8ScaledMMLinearKernel": 24}, {"vnni": True}, ""),
        ("", {"CPUWNA16LinearKernel": 24}, {"vnni": False}, ""),
        ("OSError: no such file", {}, {"vnni": True}, ""),
    ],
)
def test_a_missing_kernel_is_told_from_a_fault(error: str, kernels: dict, cpu: dict, expected: str) -> None:
    found = lacking_kernel(error, kernels, cpu)
    assert found.startswith(expected) and bool(found) is bool(expected)


def test_the_cache_of_a_cpu_is_not_that_of_the_checkpoint() -> None:
    assert "truncates" in lacking_kernel("", {}, {}, "tensor")
    assert "one scale for all heads" in lacking_kernel("", {}, {}, "attn_head")


def test_what_an_engine_refused_is_not_put_down_to_its_cache() -> None:
    refused = "NotImplementedError: FP8 KV cache on CPU requires x86 with AVX-512 or AMX."
    assert "AVX-512 or AMX" in lacking_kernel(refused, {}, {}, "tensor")
    assert lacking_kernel("ValueError: the engine broke", {}, {}, "tensor") == ""


def test_limits_grow_with_what_they_are_made_of() -> None:
    quiet = measured()
    assert replace(quiet, noise=of_mean(0.5)).allowed == 1.0
    assert replace(quiet, engines_on_base=of_mean(0.05)).allowed_served == pytest.approx(1.1 * 0.1 + 0.05)
