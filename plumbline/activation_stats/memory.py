"""What models take of memory, what is free, and whether a collection holds the model whole or one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.device import torch_device
from plumbline.base_model.inputs import watched_layers
from plumbline.base_model.names import Names
from plumbline.execution.share_out import shares_out, workers_here

SHARE = 0.8
"""Share of the free memory that a step may use."""
REST = 1 << 30
"""Bytes of the process itself: libraries, buffers of the matrix products, activations of a batch."""
CGROUP = Path("/sys/fs/cgroup")


def mode_of(
    execution: ExecutionParams, base: BaseCheckpoint, settings: StatisticsParams
) -> Literal["whole", "layerwise"]:
    """The mode in params.yaml. `auto` is layerwise where the whole model would not fit and its layers can be run one at
    a time. Both modes give the same bytes."""
    if execution.mode != "auto":
        return execution.mode
    model = outline_of(execution, base)
    if model is None:
        return "whole"
    needed = needed_bytes(model, settings) * (execution.workers if shares_out(execution) else 1)
    return "whole" if needed <= SHARE * free_bytes(torch_device(base.device)) else "layerwise"


def outline_of(execution: ExecutionParams, base: BaseCheckpoint) -> PreTrainedModel | None:
    """The base model without its weights; None if its decoder layers cannot be run one at a time.

    Raises:
        ValueError: they cannot, and the mode in params.yaml is layerwise.
    """
    try:
        model = base.streamed("cpu").model
        Decoder(model)  # refuses a model whose layers need more than hidden states
    except ValueError:  # if the model is broken, loading it whole reports why
        if execution.mode == "layerwise":
            raise
        return None
    return model


def needed_bytes(model: nn.Module, settings: StatisticsParams) -> int:
    """Upper bound on the bytes of weights and Hessians (one site per layer); weights may be on the meta device."""
    weights = weight_bytes(model)
    if not settings.hessian:
        return weights
    hessians = hessian_bytes(model, settings.ignore)
    # With several shards, the sum so far and that of the next shard are both in memory.
    return weights + hessians * (1 if settings.shards == 1 else 2)


def weight_bytes(model: nn.Module, wanted: Names = lambda name: True) -> int:
    """Bytes of the parameters that `wanted` selects, shared ones once; they may be on the meta device."""
    return sum({id(x): x.numel() * x.element_size() for name, x in model.named_parameters() if wanted(name)}.values())


def gib(size: float) -> str:
    """Bytes in words: 2.4 GiB."""
    return f"{size / 2**30:.1f} GiB"


def hessian_bytes(model: nn.Module, ignore: Sequence[str]) -> int:
    """Upper bound on the bytes of one set's Hessians (one site per layer); weights may be on the meta device."""
    total = 0
    for layer in watched_layers(model, ignore).values():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            # A Linear stores its weight as (out, in), a Conv1D as (in, out).
            total += 8 * weight.shape[1 if isinstance(layer, nn.Linear) else 0] ** 2
        else:
            total += 8 * max(x.shape[-1] for x in layer.parameters(recurse=False)) ** 2
    return total


def free_bytes(device: str) -> int:
    """Free memory of the device in bytes; on the CPU limited by the container, and divided
    among the workers of this machine."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(allowed) - int(used.read_text())))
    return free // workers_here()
