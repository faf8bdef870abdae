"""The steps of a model in a folder with the model, `base`, and a calibration set, `set`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_model import shapes
from benchmarks.peers.subjects import write_set
from plumbline.activation_stats import memory
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import Pieces
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
IN_GROUPS: dict[str, Any] = {"method": "gptq", "weight_bits": 4, "group_size": 128}
SCHEME = SchemeParams.model_validate(IN_GROUPS)
STATIC: dict[str, Any] = {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}}
OTHER_SCHEMES = {
    "adaround": SchemeParams.model_validate(IN_GROUPS | {"method": "adaround"}),
    "awq": SchemeParams.model_validate(IN_GROUPS | {"transform": "awq"}),
    "mixed": SchemeParams.model_validate(
        {"method": "gptq", "group_size": 128, "mixed": {"widths": [4, 8], "average_bits": 6}}
    ),
    "propagated": SchemeParams.model_validate(IN_GROUPS | {"propagate": "quantized", "correction": 0}),
    "smoothquant": SchemeParams.model_validate(STATIC | {"transform": "smoothquant"}),
}
"""Schemes for which quantizing layer by layer keeps more in memory than for `SCHEME`, or something else."""
SETTINGS = StatisticsParams(mantissa_bits=0)
EVALUATION = EvaluationParams(batch_tokens=64)


def write_inputs(folder: Path, kind: Any, values: dict[str, Any]) -> None:
    """Write a random model of this configuration in bfloat16, and a calibration set of four samples."""
    shapes.SHAPES["of a test"] = (kind, values)
    try:
        shapes.write_model("of a test", folder / "base")
    finally:
        del shapes.SHAPES["of a test"]
    (folder / "set").mkdir()
    write_set(folder / "set", "numbers", [np.arange(start, start + 64, dtype=np.int32) for start in range(4)])


def files(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Steps:
    """What they read is the output in mode `auto`, where there is one."""

    def __init__(self, root: Path, mode: Any, resume: Path | None = None, device: str = "cpu") -> None:
        """
        Args:
            resume: a folder for the points to resume from.
            device: of the models.
        """
        self.root, self.mode, self.resume = root, mode, resume
        self.read = "auto" if (root / "quantization-auto").is_dir() else mode
        self.base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device=device))
        self.execution = ExecutionParams(mode=mode, hidden_gib=0)

    def out(self, step: str) -> Path:
        """A folder for the output."""
        (folder := self.root / f"{step}-{self.mode}").mkdir(exist_ok=True)
        return folder

    def statistics(self) -> None:
        build_activation_stats(
            SETTINGS, self.base, self.root / "set", self.out("statistics"), self.execution, "", self.resume
        )

    def quantization(self) -> None:
        self._quantize(SCHEME, "quantization")

    def _quantize(self, scheme: SchemeParams, step: str) -> None:
        inputs = self.base, self.root / f"statistics-{self.read}", self.root / "set", self.out(step)
        build_quantized_model("s", scheme, *inputs, "", self.execution, self.resume)

    def evaluation(self) -> None:
        evaluate._measured.clear()
        evaluate._of_base.clear()
        samples = [np.arange(48) + start for start in range(4)]
        names = [str(number) for number in range(len(samples))]
        out = self.out("evaluation")
        layerwise = layerwise_mode.layerwise_of(self.execution, EVALUATION, 4 * 48, self.base, out)
        if layerwise is not None and self.resume is not None:
            layerwise = replace(layerwise, pieces=Pieces(self.resume, ""))
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
        streamed = self.base.streamed("cpu")
        header = self.root / f"statistics-{self.read}" / "header.json"

        def quantizing(scheme: SchemeParams) -> Callable[[], int]:
            return lambda: needed_bytes(streamed, read_json(header), scheme, 0).layerwise

        return {
            "statistics": lambda: memory.needed_layerwise(streamed, SETTINGS, 0),
            "evaluation": lambda: layerwise_mode.needed_layerwise(streamed, EVALUATION, 4 * 48, 0),
            **{step: quantizing(scheme) for step, scheme in {"quantization": SCHEME, **OTHER_SCHEMES}.items()},
        }

    def run(self, step: str) -> None:
        """A step by its name in `said`."""
        if step in OTHER_SCHEMES:
            self._quantize(OTHER_SCHEMES[step], step)
        else:
            getattr(self, step)()
