"""The same tiny models under llm-compressor's default W4A16: does it run, what does it quantize, does it load."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import python_of
from benchmarks.peers.recipes import LLM_COMPRESSOR
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.stored import quantizable_weights, quantized_weights
from tests.architectures.vocabulary import samples

SCRIPT = Path(__file__).parent / "llm_compressor.py"


def lines(names: Sequence[str]) -> Iterator[str]:
    """Yield a table row per architecture.

    Raises:
        Unavailable: there is no environment for llm-compressor; `benchmarks.peers` makes it.
    """
    yield "| architecture | runs | share | reloads | logits of the folder against those in memory |"
    yield "|---|---|---:|---|---|"
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "samples.json").write_text(json.dumps(samples()))
        for name in names:
            CATALOGUE[name].write(folder / name)
        for name, facts in _run(folder, names):
            out = folder / f"{name}-quantized"
            share = "–"
            if facts["runs"] == "yes" and any(out.glob("*.safetensors")):
                share = f"{quantized_weights(out) / quantizable_weights(folder / name):.3f}"
            yield f"| {name} | {facts['runs']} | {share} | {facts['reloads']} | {facts['logits']} |"


def _run(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the script in the environment of llm-compressor; it prints a line of JSON per model."""
    python = python_of(LLM_COMPRESSOR, install=False)
    images = [name for name in names if CATALOGUE[name].images]
    command = [python, str(SCRIPT), str(folder), json.dumps(list(names)), json.dumps(images)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                facts = json.loads(line)
                yield facts["name"], facts
    if process.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {process.returncode}")
