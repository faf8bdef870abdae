"""Whether an engine serves a model as it was simulated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plumbline.serving.comparison import RunDifference

SHARE = 0.25
"""Of what quantization moves. Two differences that do not depend on each other add as squares: 3 %."""
FLOOR = 2.0
"""Times what the engines differ by without quantization, or what noise in the last bits does."""
SAME_MODEL = 0.1
"""Nats per token by which engines may differ before quantization; bfloat16 makes 0.01 to 0.03."""
FARTHER = 1.1
"""Times as far from the base model as simulated: what a second error of nearly half the size of the first adds."""


MISSING = {
    "cpu_gemm_wna16.*not implemented for": (
        "vLLM's kernel for 4-bit weights on a CPU computes in bfloat16 and float16 alone"
    ),
    "cpu_gemm_wna16": "this machine lacks the kernel for 4-bit weights (AVX-512)",
    r"static_scaled_fp8_quant|narrow\(\) cannot be applied to a 0-dim tensor": (
        "vLLM 0.32 has no static FP8 rounding of activations on a CPU"
    ),
    "No compressed-tensors compatible scheme": "vLLM does not take this format on a CPU",
    "Forced .* kernel .* is not supported": "vLLM has no kernel for it on a CPU",
    "FP8 KV cache on CPU requires": "this machine lacks the kernel for an FP8 cache (AVX-512 or AMX)",
}
"""What vLLM's errors contain where a kernel is missing -> the reason; the first that fits counts."""
CACHES = {
    "tensor": "vLLM 0.32 truncates on a CPU where E4M3 rounds, which makes cached keys and values 4.5 % too small",
    "attn_head": "vLLM 0.32 takes one scale for all heads on a CPU, and truncates where E4M3 rounds",
}
"""Why an FP8 cache on a CPU is not that of the checkpoint, by how its scales are shared."""


@dataclass(frozen=True)
class Measurements:
    """The differences that decide. An "engine" is vLLM; transformers is what the evaluation uses.

    Attributes:
        engines: engine against transformers on the quantized model.
        engines_on_base: the same on the model before quantization.
        noise: transformers against itself on the quantized model, with noise in the last bits of the inputs of its
            quantized layers. Where activations are rounded, a last bit decides a code, and a code decides others.
        simulated: base against quantized model in transformers, on the prompts.
        served: base against quantized model in the engine, on the prompts.
    """

    engines: RunDifference
    engines_on_base: RunDifference
    noise: RunDifference
    simulated: RunDifference
    served: RunDifference

    @property
    def allowed(self) -> float:
        """The largest mean difference between the engines that counts as the same model."""
        floors = FLOOR * max(self.engines_on_base.mean, self.noise.mean)
        return max(floors, SHARE * self.simulated.mean)

    @property
    def allowed_served(self) -> float:
        """The largest mean distance from the base model that counts as no farther than simulated."""
        return FARTHER * self.simulated.mean + self.engines_on_base.mean

    @property
    def passed(self) -> bool:
        """Whether the engine computes what was simulated, and is no farther from the base model."""
        return (
            self.engines_on_base.mean <= SAME_MODEL
            and self.engines.mean <= self.allowed
            and self.served.mean <= self.allowed_served
        )

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        difference = f"vLLM differs from transformers by {_n(self.engines.mean)} nats a token (mean)"
        moved = f"quantization moves {_n(self.simulated.mean)}"
        if self.engines_on_base.mean > SAME_MODEL:
            return (
                f"vLLM differs from transformers by {_n(self.engines_on_base.mean)} nats a token (mean) before "
                "quantization already"
            )
        if self.engines.mean > self.allowed:
            return f"{difference}, more than the {_n(self.allowed)} that {moved} and rounding noise explain"
        if self.served.mean > self.allowed_served:
            return (
                f"in vLLM it moves {_n(self.served.mean)} nats a token away from the base model, simulated were "
                f"{_n(self.simulated.mean)}"
            )
        if self.noise.mean > SHARE * self.simulated.mean:
            return (
                f"{difference}; noise in the last bits alone moves {_n(self.noise.mean)}. It is as far from the base "
                f"model as simulated: {_n(self.served.mean)} and {_n(self.simulated.mean)}"
            )
        return f"{difference}; {moved}"


def lacking_kernel(error: str, kernels: Mapping[str, int], cpu: Mapping[str, bool], kv_cache: str = "") -> str:
    """Why this machine or vLLM's build for CPUs cannot compute what the model asks for; empty if they can.

    Args:
        error, kernels: of the engine's answer.
        cpu: what the machine has.
        kv_cache: how FP8 scales of keys and values are shared; empty: no FP8 cache.
    """
    for pattern, reason in MISSING.items():
        if re.search(pattern, error, re.DOTALL):
            return reason
    if "Failed to find a kernel" in error:
        lines = [line.strip() for line in error.splitlines() if line.strip().startswith("CPU")]
        return f"vLLM has no kernel for it on this CPU ({lines[0] if lines else error.splitlines()[0]})"
    if "CPUInt8ScaledMMLinearKernel" in kernels and not cpu.get("vnni", False):
        return "this machine lacks the kernel for 8-bit products (AVX-512 VNNI; without it they saturate)"
    return "" if error else CACHES.get(kv_cache, "")


def _n(value: float) -> str:
    return f"{value:.2g}" if value < 0.01 else f"{value:.3f}"
