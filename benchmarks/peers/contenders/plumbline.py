"""Plumbline: the build functions of activation_stats and quantized_model.

Statistics are written to disk and read back as in production, once for all schemes, with all that Plumbline collects,
also what a scheme does not need.
"""

from benchmarks.peers.contenders.process import Task, contend, cpu_seconds  # isort: skip

import time
from pathlib import Path
from typing import Any

from benchmarks.peak_memory import forget_peak, peak_bytes

PROJECT = Path(__file__).resolve().parents[3]


def load(task: Task) -> Any:
    """The base model."""
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.params import ModelParams

    base = BaseCheckpoint.of(ModelParams(name=str(task.model), device="cpu"), PROJECT)
    base.loaded()
    return base


def quantize(base: Any, task: Task) -> dict[str, Any]:
    """Write to `out` statistics, unless it has them, and a folder per scheme.

    The recipe is a mapping from names to entries of params.yaml.

    Returns:
        `parts`: of the statistics and of every scheme its seconds, CPU seconds and peak memory.
    """
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.artifact import read_json
    from plumbline.params import load_params
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    settings = load_params(PROJECT).statistics
    schemes = {name: SchemeParams.model_validate(entry) for name, entry in task.recipe.items()}
    stats, parts = task.out / "statistics", {}
    if not stats.is_dir():
        stats.mkdir(parents=True)
        parts["statistics"] = _measured(lambda: build_activation_stats(settings, base, task.samples, stats))
    for name, scheme in schemes.items():
        folder = task.out / name
        folder.mkdir()

        def build(name: str = name, scheme: SchemeParams = scheme, folder: Path = folder) -> None:
            build_quantized_model(name, scheme, base, stats, task.samples, folder)

        parts[name] = _measured(build)
        if fallbacks := read_json(folder / "calibration.json")["fallbacks"]:
            raise RuntimeError(f"{name}: layers rounded to nearest: {fallbacks}")
    return {"parts": parts, "bytes": max(part["bytes"] for part in parts.values())}


def _measured(work: Any) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a part."""
    forget_peak()
    started, cpu = time.perf_counter(), cpu_seconds()
    work()
    return {"work": time.perf_counter() - started, "cpu": cpu_seconds() - cpu, "bytes": peak_bytes()}


if __name__ == "__main__":
    contend(load, quantize)
