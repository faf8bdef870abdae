"""python -m tests.helpers.limited_steps FOLDER MODE MODEL/STEP...: steps in a process that may take no more memory than
is said before for the mode layer by layer.

Prints what becomes of each step, a line of JSON as it ends. FOLDER holds folders of models. Each holds, in `large` and
`small`, a model `base` and a calibration set `set`. The steps of the small ones come first, without a limit: what the
process holds then is what it holds anyway.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from plumbline.activation_stats import memory
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.artifact import read_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.evaluation import evaluate, layerwise_mode
from plumbline.evaluation.evaluate import divergences
from plumbline.evaluation.held_out import HeldOut
from plumbline.evaluation.params import EvaluationParams
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.layerwise_mode import needed_bytes
from plumbline.quantized_model.params import SchemeParams

STEPS = ("statistics", "quantization", "evaluation")
SCHEME = SchemeParams.model_validate({"method": "gptq", "weight_bits": 4, "group_size": 128})
SETTINGS = StatisticsParams()
EVALUATION = EvaluationParams(batch_tokens=64)
ROOM = 32 << 20
"""Bytes beside what is said: buffers of products and activations, for which `REST` allows 1 GB."""
SAID_BY_TORCH = ("allocate memory", "unable to mmap", "could not create a primitive", "memory ran out")


class Steps:
    """The steps of the model in a folder. What they read is the output in mode `auto`, where there is one."""

    def __init__(self, root: Path, mode: Any) -> None:
        self.root, self.mode = root, mode
        self.read = "auto" if (root / "quantization-auto").is_dir() else mode
        self.base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))
        self.execution = ExecutionParams(mode=mode, hidden_gib=0)

    def out(self, step: str) -> Path:
        """A new folder."""
        (folder := self.root / f"{step}-{self.mode}").mkdir()
        return folder

    def statistics(self) -> None:
        build_activation_stats(SETTINGS, self.base, self.root / "set", self.out("statistics"), self.execution)

    def quantization(self) -> None:
        inputs = self.base, self.root / f"statistics-{self.read}", self.root / "set", self.out("quantization")
        build_quantized_model("s", SCHEME, *inputs, "", self.execution)

    def evaluation(self) -> None:
        evaluate._measured.clear()
        evaluate._of_base.clear()
        samples = [np.arange(48) + start for start in range(4)]
        names = [str(number) for number in range(len(samples))]
        out = self.out("evaluation")
        layerwise = layerwise_mode.layerwise_of(self.execution, EVALUATION, 4 * 48, self.base, out)
        parts = [HeldOut(names, names, names, samples, {})]
        inputs = (
            EVALUATION,
            self.base,
            self.base.digest(),
            self.root / f"quantization-{self.read}",
            {},
            parts,
            layerwise,
        )
        found = divergences(*inputs)[0][0]
        assert found.kl.mean() > 0
        np.save(out / "kl.npy", found.kl)

    def said(self) -> dict[str, Callable[[], int]]:
        """By step, the bytes that it is said to need layer by layer, beside `REST`."""
        model = self.base.streamed("cpu").model
        header = self.root / f"statistics-{self.read}" / "header.json"
        return {
            "statistics": lambda: memory.needed_layerwise(model, SETTINGS, 0),
            "quantization": lambda: needed_bytes(model, read_json(header), SCHEME, 0).layerwise,
            "evaluation": lambda: layerwise_mode.needed_layerwise(model, EVALUATION, 4 * 48, 0),
        }


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Within the context, this process may allocate so many bytes more than it has now."""
    now = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (now + size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def attempt(run: Callable[[], None], size: int) -> str:
    """What became of a step with so many bytes: `done`, `out of memory`, or another error."""
    try:
        with limited(size):
            run()
    except (MemoryError, RuntimeError, OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
        short = isinstance(error, MemoryError) or any(said in text for said in SAID_BY_TORCH)
        return "out of memory" if short else text
    return "done"


def main(root: Path, mode: str, steps: Sequence[str]) -> None:
    torch.set_num_threads(1)
    models = sorted(path.name for path in root.iterdir())
    with TemporaryDirectory() as scratch:
        for model in models:
            shutil.copytree(root / model / "small", Path(scratch) / model)
            for step in STEPS:
                getattr(Steps(Path(scratch) / model, mode), step)()
    for name in steps:
        model, step = name.split("/")
        large = Steps(root / model / "large", mode)
        size = large.said()[step]()
        print(json.dumps([name, attempt(getattr(large, step), size + ROOM)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
