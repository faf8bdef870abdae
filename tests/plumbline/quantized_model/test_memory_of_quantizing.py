"""Peak memory of quantizing and evaluating, whole and layer by layer, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig

from benchmarks.large_model import shapes
from benchmarks.peers.subjects import write_set
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.memory import REST
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.quantized_model.layerwise_mode import COPIES
from tests.helpers.paths import PROJECT

LAYERS, WIDTH, INNER = 16, 512, 8192
LAYER = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
"""Bytes of one decoder layer in bfloat16: 27 MB; the model takes 440 MB."""
SAID = COPIES * LAYER + REST
"""Bytes that are said to be needed layer by layer, where the statistics hold no Hessian."""

MEASURE = """
import re, sys
from pathlib import Path

import numpy as np

from plumbline.activation_stats.params import ExecutionParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.evaluation.evaluate import divergences
from plumbline.evaluation.held_out import HeldOut
from plumbline.evaluation.layerwise_mode import layerwise_of
from plumbline.evaluation.params import EvaluationParams
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.params import SchemeParams

def peak():  # getrusage would count what the parent held before exec
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

root, mode = Path(sys.argv[1]), sys.argv[2]
base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))
scheme = SchemeParams.model_validate({"method": "rtn", "weight_bits": 4, "group_size": 128})
out, execution = root / mode, ExecutionParams(mode=mode, hidden_gib=0)
out.mkdir()
before = peak()
build_quantized_model("s", scheme, base, root / "stats", root / "set", out, "", execution)
params, ids = EvaluationParams(batch_tokens=64), [np.arange(32), np.arange(32) + 1]
held_out = HeldOut(["a", "b"], ["a", "b"], ["a", "b"], ids, {})
layerwise = layerwise_of(execution, params, 64, base, root)
assert divergences(params, base, "", out, {}, [held_out], layerwise)[0][0].kl.mean() > 0
print(peak() - before)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    values = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "small", (LlamaConfig, values))
        assert shapes.write_model("small", root / "base") > LAYERS * LAYER // 2
    (root / "set").mkdir()
    write_set(root / "set", "numbers", [np.arange(8, dtype=np.int32)])
    (root / "stats").mkdir()
    base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))
    settings = StatisticsParams(hessian=False, mantissa_bits=0)
    build_activation_stats(settings, base, root / "set", root / "stats", ExecutionParams(mode="layerwise"))
    return root


def peak(root: Path, mode: str) -> int:
    """Bytes above those that are resident once the libraries are imported."""
    command = [sys.executable, "-c", MEASURE, str(root), mode]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return int(found.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_layer_by_layer_needs_what_is_said_before_and_the_whole_more(root: Path) -> None:
    assert peak(root, "layerwise") < SAID < peak(root, "whole")
