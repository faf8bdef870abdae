"""llm-compressor itself, on what was handed over. Skipped where benchmarks/peers has made no environment for it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.environments import Unavailable, python_of
from benchmarks.peers.recipes import LLM_COMPRESSOR
from benchmarks.peers.subjects import write_set
from plumbline.base_model.folder import BUNDLED
from plumbline.export.llm_compressor import hand_over
from plumbline.quantized_model.params import SchemeParams
from plumbline.tokenized_samples.batches import sample_id
from tests.helpers.paths import PROJECT

pytestmark = pytest.mark.integration
LENGTHS = (20, 512, 33, 300, 5, 300, 64)


@pytest.mark.parametrize(
    ("scheme", "passes"),
    [
        # A layer is calibrated, then run once more for what the next one is to see; each modifier by itself.
        ({"method": "gptq", "group_size": 128}, 2),
        ({"method": "rtn", "weight_bits": 8, "activations": {}}, 2),
        ({"method": "rtn", "weight_bits": 8, "activations": {}, "transform": "smoothquant"}, 4),
    ],
    ids=["gptq", "static activations", "smoothquant"],
)
def test_llm_compressor_reads_every_sample_once_a_pass_whole_and_unpadded(
    scheme: dict[str, Any], passes: int, tmp_path: Path
) -> None:
    try:
        python = python_of(LLM_COMPRESSOR, install=False)
    except Unavailable as problem:
        pytest.skip(f"llm-compressor: {problem}")
    rng = np.random.default_rng(0)
    samples = [rng.integers(3, 6000, size=length, dtype=np.int32) for length in LENGTHS]
    (tmp_path / "set").mkdir()
    write_set(tmp_path / "set", "uneven", samples)
    hand_over(tmp_path / "set", "mine", SchemeParams.model_validate(scheme), tmp_path / "out")
    arguments = [tmp_path / "out", BUNDLED, tmp_path / "model", "{}", "--watch"]
    command = [python, "-m", "benchmarks.peers.contenders.llm_compressor", *map(str, arguments)]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = json.loads(ran.stdout.splitlines()[-1])["seen"]
    assert seen["embedding"] == [sample_id(ids) for ids in samples] * passes
    assert seen["first_linear"] == [[1, length] for length in LENGTHS] * passes
    assert (tmp_path / "model" / "config.json").is_file()
