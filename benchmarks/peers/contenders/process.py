"""What the process of every contender shares: its arguments, its clocks, and the line of JSON that it prints.

Imports the standard library only, and is imported first, so that its clock starts with the process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peak_memory import peak_bytes

STARTED = time.perf_counter()


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do."""

    samples: Path
    """A file of token ids in JSON, a list per sample; llm-compressor: the folder that `plumbline export` wrote;
    Plumbline: a calibration_set artifact."""
    model: Path
    out: Path
    """The folder to write, which transformers loads."""
    recipe: dict[str, Any]
    """The tool's settings, of benchmarks/peers/recipes.py."""
    watch: bool
    """Record the samples that reach the model."""

    def ids(self) -> list[list[int]]:
        """The token ids of every sample."""
        return [list(ids) for ids in json.loads(self.samples.read_text())]


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(os.times()[:4])


def contend(
    load: Callable[[Task], Any],
    quantize: Callable[[Any, Task], dict[str, Any]],
    finish: Callable[[Task], None] | None = None,
) -> None:
    """Run a contender on the command line's task and print a line of JSON.

    Args:
        load: the model, loaded; not part of the time measured.
        quantize: quantizes the model, writes it, and returns further figures to print.
        finish: what only this benchmark needs, after the clock has stopped: another form of the model's folder.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("samples", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe", type=json.loads, help="settings of the tool, as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--watch", action="store_true", help="record the samples that reach the model")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    task = Task(arguments.samples, arguments.model, arguments.out, arguments.recipe, arguments.watch)
    model = load(task)
    loaded, cpu = time.perf_counter(), cpu_seconds()
    figures = quantize(model, task)
    done, cpu = time.perf_counter(), cpu_seconds() - cpu
    figures = {"bytes": peak_bytes(), **figures}
    if finish is not None:
        finish(task)
    times = {"process": done - STARTED, "load": loaded - STARTED, "work": done - loaded, "cpu": cpu}
    print(json.dumps({**times, **figures}))
