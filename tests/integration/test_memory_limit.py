"""Steps in a process whose memory is limited to what is said before: layer by layer they pass, whole they do not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from tests.helpers.model_steps import OTHER_SCHEMES, STEPS, Steps, files, write_inputs
from tests.helpers.paths import PROJECT

COMMON = {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
EXPERTS = {"num_experts": 32, "num_experts_per_tok": 2, "head_dim": 64}
SMALL = {"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128}
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dense": (LlamaConfig, {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 1024}),
    "mixture": (
        Qwen3MoeConfig,
        {**EXPERTS, "num_hidden_layers": 3, "hidden_size": 256, "moe_intermediate_size": 512},
    ),
}
"""Configuration class and sizes of the models that are measured: 32 and 77 MB."""
WORDY: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 65536}
"""Of one whose 67 MB are its vocabulary's matrices, which are in memory at a time: whole it takes as much."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for model, (kind, sizes) in {**SHAPES, "wordy": (LlamaConfig, WORDY)}.items():
        for name, values in (("large", sizes), ("small", sizes | SMALL | {"vocab_size": COMMON["vocab_size"]})):
            write_inputs(tmp_path / model / name, kind, COMMON | values)
    return tmp_path


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits memory on Linux")
def test_every_step_keeps_to_the_memory_that_is_said_before(root: Path) -> None:
    """`auto` sees the limit, and goes layer by layer, to the bytes that the whole gives without a limit."""
    largest = steps_of(*SHAPES)
    assert ends(root, "auto", steps_of("wordy") + largest) == dict.fromkeys(steps_of("wordy") + largest, "done")
    for model in SHAPES:
        for step in STEPS:
            getattr(Steps(root / model / "large", "whole"), step)()
            layerwise, whole = (root / model / "large" / f"{step}-{mode}" for mode in ("auto", "whole"))
            assert files(layerwise) == files(whole)
            shutil.rmtree(whole)
    assert ends(root, "whole", largest) == dict.fromkeys(largest, "out of memory")


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits memory on Linux")
def test_transforms_mixed_bits_and_propagation_keep_to_what_is_said(root: Path) -> None:
    """The weights are a sixth of the memory that is said, so a mode `whole` would often fit, too."""
    steps = [*(f"dense/{scheme}" for scheme in OTHER_SCHEMES), "mixture/propagated"]
    for model in SHAPES:
        Steps(root / model / "large", "layerwise").statistics()
    assert ends(root, "layerwise", steps) == dict.fromkeys(steps, "done")


def steps_of(*models: str) -> list[str]:
    return [f"{model}/{step}" for model in models for step in STEPS]


def ends(root: Path, mode: str, steps: Sequence[str]) -> dict[str, str]:
    """What becomes of each step in a process with a limit. A new one takes up the rest where PyTorch crashes for want
    of memory."""
    # Every large tensor goes back to the system once it is freed, and threads have small stacks.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    shell = ["sh", "-c", 'ulimit -s 1024; exec "$0" "$@"', sys.executable, "-m", "tests.helpers.limited_steps"]
    answers: dict[str, str] = {}
    while left := [step for step in steps if step not in answers]:
        command = [*shell, str(root), mode, *left]
        ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)
        answers.update(json.loads(line) for line in ended.stdout.splitlines() if line.startswith('["'))
        if ended.returncode:
            assert ended.returncode == -signal.SIGSEGV, ended.stderr
            answers[next(step for step in left if step not in answers)] = "out of memory"
    return answers
