"""Plumbline's side of benchmarks/peers.py, run in a separate process.

Runs the build functions of activation_stats and quantized_model; statistics are written to disk and read back as in
production. Prints one line of JSON.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.peak_memory import peak_bytes  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="a calibration_set artifact")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="output folder: statistics/ and a folder per scheme")
    parser.add_argument("schemes", type=json.loads, help="name -> entry of params.yaml, as JSON")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.artifact import read_json
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.params import ModelParams
    from plumbline.params import load_params
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    settings = load_params(PROJECT).statistics
    schemes = {name: SchemeParams.model_validate(entry) for name, entry in arguments.schemes.items()}
    imported = time.perf_counter()
    base = BaseCheckpoint.of(ModelParams(name=str(arguments.model), device="cpu"), PROJECT)
    base.loaded()
    loaded, cpu = time.perf_counter(), _cpu()
    stats = arguments.out / "statistics"
    stats.mkdir(parents=True)
    parts, began = {}, time.perf_counter()
    build_activation_stats(settings, base, arguments.samples, stats)
    parts["statistics"] = time.perf_counter() - began
    for name, scheme in schemes.items():
        began = time.perf_counter()
        folder = arguments.out / name
        folder.mkdir()
        build_quantized_model(name, scheme, base, stats, arguments.samples, folder)
        if fallbacks := read_json(folder / "calibration.json")["fallbacks"]:
            raise RuntimeError(f"{name}: layers rounded to nearest: {fallbacks}")
        parts[name] = time.perf_counter() - began
    done, cpu = time.perf_counter(), _cpu() - cpu
    print(
        json.dumps(
            {
                "process": done - STARTED,
                "imports": imported - STARTED,
                "load": loaded - imported,
                "work": done - loaded,
                "cpu": cpu,
                "bytes": peak_bytes(),
                "parts": parts,
            }
        )
    )


def _cpu() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
