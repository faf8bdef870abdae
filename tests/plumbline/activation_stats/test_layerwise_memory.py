"""Peak memory of a collection whole and layer by layer, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.activation_stats.kernel import BUFFERED
from plumbline.activation_stats.memory import needed_layerwise
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.streamed import StreamedModel
from plumbline.histogram import n_buckets
from tests.helpers.paths import PROJECT

LAYERS, WIDTH, INNER = 24, 512, 4096
LAYER = 4 * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH)
"""Bytes of one decoder layer in float32: 29 MB."""
MIB = 2**20

MEASURE = """
import json, re, sys
from pathlib import Path

import torch

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.layerwise import CollectionInputs, layer_by_layer
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel

def peak():  # getrusage would count what the parent held before exec
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

mode, folder, scratch, settings = sys.argv[1:]
settings = StatisticsParams.model_validate_json(settings)
samples = [(f"{number}", [number] * 16) for number in range(3)]
origin = {"base_model_digest": "", "fingerprint": ""}
before = peak()
if mode == "whole":
    parts = [collect(load_model(Path(folder), "cpu"), samples, settings, **origin)]
else:
    inputs = CollectionInputs(samples, settings, **origin)
    parts = layer_by_layer(StreamedModel(Path(folder), "cpu"), inputs, Path(scratch))
sums = {name: float(site.sum_sq.sum()) for part in parts for name, site in part.sites.items()}
print(json.dumps({"before": before, "peak": peak(), "sums": sums}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 700 MB, a file per layer."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        dtype="float32",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator, where = torch.Generator().manual_seed(0), {}
    for part in ["", *(f"layers.{number}." for number in range(LAYERS))]:
        names = [name for name in shapes if (part in name if part else "layers." not in name)]
        file = f"model-{part or 'rest'}.safetensors"
        save_file({name: torch.randn(shapes[name], generator=generator) / WIDTH**0.5 for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def run(mode: str, folder: Path, scratch: Path, settings: StatisticsParams) -> dict[str, Any]:
    command = [sys.executable, "-c", MEASURE, mode, str(folder), str(scratch), settings.model_dump_json()]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_layer_by_layer_needs_a_layer_and_not_the_model(folder: Path, tmp_path: Path) -> None:
    few = StatisticsParams(hessian=False, mantissa_bits=0)
    whole, layerwise = (run(mode, folder, tmp_path, few) for mode in ("whole", "layerwise"))
    assert len(whole["sums"]) == 4 * LAYERS and whole["sums"] == layerwise["sums"]
    assert whole["peak"] - whole["before"] > LAYERS * LAYER
    assert layerwise["peak"] - layerwise["before"] < LAYER + 128 * MIB  # allowed are a layer, hidden states and 1 GB


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_everything_that_is_collected_needs_what_is_said_before(folder: Path, tmp_path: Path) -> None:
    settings = StatisticsParams()
    found = run("layerwise", folder, tmp_path, settings)
    said = needed_layerwise(StreamedModel(folder, "cpu"), settings, 0)
    widths = (6 * WIDTH + INNER, 6 * WIDTH**2 + INNER**2)  # q, k, v, o, gate, up, and down: their sum, and of squares
    assert said == LAYER + 2 * (8 * widths[1] + 12 * n_buckets(4) * widths[0]) + 4 * BUFFERED * widths[0]
    product = 8 * INNER**2  # of one sample, in float32 and as float64; REST leaves room for it
    assert found["peak"] - found["before"] < said + product + 128 * MIB
