"""Statistics, quantizing and evaluation layer by layer, killed in every layer: the same bytes, each layer twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from tests.helpers.model_steps import STEPS, Steps, files, write_inputs
from tests.helpers.paths import PROJECT

LAYERS = [f"model.layers.{number}" for number in range(4)]
PARTS = {
    "statistics": LAYERS,
    "quantization": [*LAYERS, "outside"],
    "evaluation": [*(f"{model}.{layer}.states" for model in ("base", "quantized") for layer in LAYERS), "divergence"],
}


@pytest.mark.integration
def test_a_kill_in_any_layer_costs_that_layer_and_no_byte(tmp_path: Path) -> None:
    values = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 128}
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for root in (killed, undisturbed):
        write_inputs(root, LlamaConfig, values | {"num_attention_heads": 4, "num_key_value_heads": 4})
    command = [sys.executable, "-m", "tests.helpers.killed_steps", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout.splitlines()[-1])
    assert made == {step: [part for part in PARTS[step] for _ in range(2)] for step in STEPS}
    for step in STEPS:
        getattr(Steps(undisturbed, "layerwise"), step)()
        assert files(killed / f"{step}-layerwise") == files(undisturbed / f"{step}-layerwise")
