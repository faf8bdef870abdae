"""python -m benchmarks.large_model FOLDER [--shape llama-8b] [--layers N] [--limit GIB] [--samples 16] [--tokens 512]
                                      [--judged 16]

Writes a random model of a real shape into FOLDER (16 GB for llama-8b; kept, so that a second call starts at once), and
runs statistics of samples of random tokens, W4A16 GPTQ, and an evaluation on `--judged` other samples, layer by layer.
Every step is a process of its own. Prints seconds and peak resident memory; ends with 1 where that is above `--limit`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peak_memory import peak_bytes

STEPS = ("statistics", "quantization", "evaluation")
PARTS = "parts"
"""Folder of what a killed quantization goes on from."""
SCHEME = {"method": "gptq", "weight_bits": 4, "group_size": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--judged", type=int, help="samples of the evaluation; as many as --samples if not given")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is not None:
        run_step(given)
        return
    if not (given.folder / "base").is_dir():
        prepare(given)
    print(f"{'step':<14}{'seconds':>9}{'peak, GiB':>11}   said before", flush=True)
    for step in STEPS:
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.large_model", *sys.argv[1:], "--step", step],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode:
            sys.exit(ended.returncode)
        print(ended.stdout, end="", flush=True)


def prepare(given: argparse.Namespace) -> None:
    """Write the model and a calibration set of random tokens."""
    from benchmarks.large_model.shapes import SHAPES, write_model
    from benchmarks.peers.subjects import write_set

    started = time.perf_counter()
    weights = write_model(given.shape, given.folder / "base", given.layers)
    vocabulary = SHAPES[given.shape][1]["vocab_size"]
    (given.folder / "set").mkdir()
    write_set(given.folder / "set", "random", tokens(given.samples, given.tokens, vocabulary, seed=0))
    print(f"{given.shape}: {weights / 1e9:.2f} billion weights, written in {time.perf_counter() - started:.0f} s")


def tokens(samples: int, length: int, vocabulary: int, seed: int) -> list[np.ndarray]:
    """Samples of random tokens, int32."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, length).astype(np.int32) for _ in range(samples)]


def run_step(given: argparse.Namespace) -> None:
    """Run one step in this process and print its line."""
    from plumbline.activation_stats.params import ExecutionParams
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.params import ModelParams

    said: list[str] = []

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "at most" in record.getMessage():
                said.append(record.getMessage())

    logging.getLogger("plumbline").setLevel(logging.INFO)
    logging.getLogger("plumbline").addHandler(Noted())
    base = BaseCheckpoint.of(ModelParams(name=str(given.folder / "base"), device="cpu"))
    execution = ExecutionParams(mode="layerwise", hidden_gib=0.25)
    base.digest()  # reads every file once; kept beside the measured step
    out = given.folder / given.step
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    started = time.perf_counter()
    {"statistics": collect, "quantization": quantize, "evaluation": evaluate}[given.step](given, base, execution)
    seconds = time.perf_counter() - started
    shutil.rmtree(given.folder / PARTS, ignore_errors=True)  # a killed step goes on from there, a new one does not
    if peak_bytes() > given.limit * 2**30:
        sys.exit(f"{given.step}: {peak_bytes() / 2**30:.2f} GiB resident, the limit is {given.limit} GiB")
    print(f"{given.step:<14}{seconds:>9.0f}{peak_bytes() / 2**30:>11.2f}   {'; '.join(said)}")


def collect(given: argparse.Namespace, base: Any, execution: Any) -> None:
    """Statistics of the calibration set."""
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.params import StatisticsParams

    build_activation_stats(StatisticsParams(), base, given.folder / "set", given.folder / "statistics", execution)


def quantize(given: argparse.Namespace, base: Any, execution: Any) -> None:
    """The base model under `SCHEME`."""
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    inputs = given.folder / "statistics", given.folder / "set", given.folder / "quantization"
    scheme = SchemeParams.model_validate(SCHEME)
    build_quantized_model("w4a16-gptq", scheme, base, *inputs, "", execution, given.folder / PARTS)


def evaluate(given: argparse.Namespace, base: Any, execution: Any) -> None:
    """Divergence of the quantized model on other random tokens."""
    from plumbline.evaluation.evaluate import divergences
    from plumbline.evaluation.held_out import HeldOut
    from plumbline.evaluation.layerwise_mode import layerwise_of
    from plumbline.evaluation.params import EvaluationParams

    judged = tokens(given.judged or given.samples, given.tokens, base.vocabulary(), seed=1)
    samples = [ids.astype(np.int64) for ids in judged]
    names = [str(number) for number in range(len(samples))]
    params = EvaluationParams(batch_tokens=given.tokens)
    layerwise = layerwise_of(execution, params, len(samples) * given.tokens, base, given.folder / "evaluation")
    held_out = HeldOut(names, names, names, samples, {})
    found, _ = divergences(params, base, "", given.folder / "quantization", {}, [held_out], layerwise)[0]
    print(f"KL {found.kl.mean():.6f} nats per token, {len(found.kl)} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
