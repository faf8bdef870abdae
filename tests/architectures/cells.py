"""What becomes of a tiny model under a scheme: equal to its simulation, or refused; anything else is a fault.

The path is that of the graph: the statistics and the model are built by the stages' own functions from a folder and a
calibration set, and the result is loaded with transformers' defaults.
"""

from __future__ import annotations

import shutil
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import plumbline
from benchmarks.peers.subjects import write_set
from plumbline import api
from plumbline.activation_stats import store
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.artifact import sha256_files
from plumbline.base_model.as_quantized import with_sequential_experts
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.params import SchemeParams
from tests.architectures.blueprint import Blueprint
from tests.architectures.stored import quantizable_weights, quantized_weights
from tests.architectures.vocabulary import samples

SCHEMES: dict[str, dict[str, Any]] = {
    "w4-rtn": {"method": "rtn", "weight_bits": 4, "group_size": 32},
    "w4-gptq": {"method": "gptq", "weight_bits": 4, "group_size": 32},
    "w4-zero": {"method": "rtn", "weight_bits": 4, "group_size": 32, "symmetric": False},
    "w4-awq": {"method": "rtn", "weight_bits": 4, "group_size": 32, "transform": "awq"},
    "w8a8-static": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}},
    "w8a8-dynamic": {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}},
    "w8a8-smooth": {
        "method": "rtn",
        "weight_bits": 8,
        "activations": {"range": "minmax"},
        "transform": "smoothquant",
    },
}
"""Schemes as params.yaml writes them; groups of 32 divide most widths of the tiny models."""
LIBRARY = Path(plumbline.__file__).parent
Outcome = Literal["equal", "refused", "fault"]


@dataclass(frozen=True)
class Cell:
    """What became of an architecture under a scheme, or of its statistics layer by layer."""

    outcome: Outcome
    share: float | None = None
    """Of the weights that can be quantized, the share that is stored as codes; None: not quantized."""
    reason: str = ""
    """Of a refusal or a fault."""

    def __str__(self) -> str:
        share = "" if self.share is None else f", share {self.share:.3f}"
        return f"{self.outcome}{share}" + (f": {self.reason}" if self.reason else "")


def cells(blueprint: Blueprint, schemes: Mapping[str, dict[str, Any]], work: Path) -> Iterator[tuple[str, Cell]]:
    """Yield what became of each scheme, and of `layerwise`: statistics collected layer by layer.

    Args:
        work: an empty folder.
    """
    base = BaseCheckpoint.of(ModelParams(name=str(blueprint.write(work / "base")), device="cpu"))
    calibration = work / "set"
    calibration.mkdir()
    write_set(calibration, "sentences", [np.array(ids, np.int32) for ids in samples()])
    settings = StatisticsParams(cache=any("kv_cache" in entry for entry in schemes.values()))
    try:
        whole = _statistics(base, calibration, settings, work / "whole", "whole")
    except Exception as error:
        yield from ((name, _stopped("statistics", error)) for name in ("layerwise", *schemes))
        return
    yield "layerwise", _layerwise(base, calibration, settings, whole, work / "layerwise")
    for name, entry in schemes.items():
        yield name, _cell(blueprint, base, SchemeParams.model_validate(entry), whole, calibration, work / name)


def _statistics(
    base: BaseCheckpoint,
    calibration: Path,
    settings: StatisticsParams,
    out: Path,
    mode: Literal["whole", "layerwise"],
) -> Path:
    out.mkdir()
    # layer by layer, hidden states go through the disk
    build_activation_stats(settings, base, calibration, out, ExecutionParams(mode=mode, hidden_gib=0))
    return out


def _layerwise(base: BaseCheckpoint, calibration: Path, settings: StatisticsParams, whole: Path, out: Path) -> Cell:
    try:
        _statistics(base, calibration, settings, out, "layerwise")
    except Exception as error:
        return _stopped("statistics", error)
    files = (store.HEADER, store.TENSORS)
    if sha256_files(out, files) == sha256_files(whole, files):
        return Cell("equal")
    return Cell("fault", reason="other statistics layer by layer than with the whole model in memory")


def _cell(
    blueprint: Blueprint, base: BaseCheckpoint, scheme: SchemeParams, stats: Path, calibration: Path, out: Path
) -> Cell:
    out.mkdir()
    try:
        build_quantized_model("scheme", scheme, base, stats, calibration, out)
    except Exception as error:
        if any(out.iterdir()):
            return Cell("fault", reason=f"fails after it wrote: {_line(error)}")
        return _stopped("quantization", error)
    try:
        share = quantized_weights(out) / quantizable_weights(base.folder)
        difference = _difference(blueprint, base, scheme, stats, out)
    except Exception as error:
        return Cell("fault", reason=f"does not load or run: {_line(error)}")
    finally:
        shutil.rmtree(out)
    return Cell("fault", share, difference) if difference else Cell("equal", share)


def _difference(blueprint: Blueprint, base: BaseCheckpoint, scheme: SchemeParams, stats: Path, out: Path) -> str:
    """How the folder, loaded as anybody loads it, differs from the simulation; empty: in no bit."""
    # Loaded plainly, so that both sides multiply alike on every processor: see plumbline/base_model/bfloat16.py.
    model = with_sequential_experts(type(base.loaded()).from_pretrained(base.folder, dtype="auto").eval())
    expected = api.simulate(model, api.quantize(model, store.load(stats), scheme), scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded, info = blueprint.auto.from_pretrained(out, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        return f"the folder lacks {len(missing)} weights, first {missing[0]}"
    if unread := sorted(info["unexpected_keys"]):
        return f"the folder holds {len(unread)} weights that nothing reads, first {unread[0]}"
    for ids in samples()[:2]:
        mine, theirs = _logits(expected, ids), _logits(loaded.eval(), ids)
        if not bool(mine.isfinite().all()):
            return "logits are not finite"
        if not torch.equal(mine, theirs):
            return f"logits differ by up to {float((mine - theirs).abs().max()):.2g} from the simulation"
    return ""


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits


def _stopped(step: str, error: Exception) -> Cell:
    """A ValueError that Plumbline itself raises is a refusal; anything else that ends a stage is a fault."""
    assert error.__traceback__ is not None
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if type(error) is ValueError and raised_in.is_relative_to(LIBRARY):
        return Cell("refused", reason=str(error))
    return Cell("fault", reason=f"{step} fails: {_line(error)}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
