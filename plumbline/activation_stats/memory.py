"""What models take of memory, what is free, and whether a collection holds the model whole or one layer at a time."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn

from plumbline.activation_stats.kernel import BUFFERED
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import Decoder, decoder_layers, layer_names
from plumbline.base_model.device import torch_device
from plumbline.base_model.experts import are_fused_experts
from plumbline.base_model.inputs import watched_layers
from plumbline.base_model.large_mixture import large_mixture
from plumbline.base_model.names import Names, outside, within
from plumbline.base_model.streamed import StreamedModel
from plumbline.execution.share_out import shares_out, workers_here
from plumbline.histogram import n_buckets

log = logging.getLogger(__name__)

SHARE = 0.8
"""Share of the free memory that a step may use."""
REST = 1 << 30
"""Bytes of the process itself: libraries, buffers of the matrix products, activations of a batch."""
EXPERTS = 2 << 30
"""Bytes of the sites of a layer's experts that are summed at a time; those of one expert in any case."""
TOTALS = 2
"""Totals of a site in memory: as they are summed, and as they are written."""
CGROUP = Path("/sys/fs/cgroup")


def mode_of(
    execution: ExecutionParams, base: BaseCheckpoint, settings: StatisticsParams
) -> Literal["whole", "layerwise"]:
    """The mode in params.yaml. `auto` is layerwise where the whole model would not fit and its layers can be run one at
    a time. Both modes give the same bytes."""
    if execution.mode == "whole":
        return "whole"
    outline = outline_of(execution, base)
    if outline is None:
        return "whole"
    workers = collectors(execution, settings)
    needed = needed_bytes(outline.model, settings) * workers
    free = free_bytes(torch_device(base.device))
    if execution.mode == "auto" and needed <= SHARE * free:
        return "whole"
    most = needed_layerwise(outline, settings, int(execution.hidden_gib * 2**30)) * workers
    log.info("mode: layerwise, at most %s of memory, %s are free", gib(most + REST * workers), gib(free))
    return "layerwise"


def collectors(execution: ExecutionParams, settings: StatisticsParams) -> int:
    """Number of processes that collect the statistics of a set together, each at least one of its shards."""
    return min(execution.workers, settings.shards) if shares_out(execution) else 1


def outline_of(execution: ExecutionParams, base: BaseCheckpoint) -> StreamedModel | None:
    """The base model without its weights; None if its decoder layers cannot be run one at a time.

    Raises:
        ValueError: they cannot, and the mode in params.yaml is layerwise.
    """
    try:
        outline = base.streamed()
        Decoder(outline.model)  # refuses a model whose layers need more than hidden states
    except ValueError as error:  # if the model is broken, loading it whole reports why
        if execution.mode == "layerwise":
            raise
        log.info("mode: whole, also if memory is short: %s", error)
        return None
    return outline


def needed_bytes(model: nn.Module, settings: StatisticsParams) -> int:
    """Upper bound on the bytes of weights and sites (one per layer); weights may be on the meta device."""
    widths = map(width_of, watched_layers(model, settings.ignore).values())
    return weight_bytes(model) + sum(_totals(width, settings) + _waiting(width, settings) for width in widths)


def needed_layerwise(streamed: StreamedModel, settings: StatisticsParams, hidden: int) -> int:
    """Upper bound on the bytes of a collection layer by layer, beside `REST`.

    Args:
        hidden: bytes of hidden states in memory.
    """
    model = streamed.model
    prefix, _ = decoder_layers(model)
    needed = [weight_bytes(model, outside(prefix)) + sites_bytes(model, settings, outside(prefix))]
    for name in layer_names(model):
        inside, mixture = within(name), large_mixture(streamed, name)
        weights = weight_bytes(model, inside)
        if mixture is not None:
            weights = max(weights - mixture.bytes, mixture.loaded_bytes)
        needed.append(weights + sites_bytes(model, settings, inside))
    return max(needed) + hidden


def sites_bytes(model: nn.Module, settings: StatisticsParams, wanted: Names = lambda name: True) -> int:
    """Upper bound on the bytes of the sites of some layers (one site per layer) while they are summed and written."""
    watched = watched_layers(model, settings.ignore)
    sizes = {name: site_bytes(width_of(layer), settings) for name, layer in watched.items() if wanted(name)}
    experts = [size for name, size in sizes.items() if are_fused_experts(watched[name])]
    return sum(sizes.values()) - sum(experts) + at_a_time(experts, 2)


def at_a_time(experts: Sequence[int], together: int) -> int:
    """Upper bound on the bytes of the sites of experts that are summed at a time.

    Args:
        experts: bytes of each site.
        together: sites of an expert that are summed together.
    """
    return min(sum(experts), max([EXPERTS, *(together * size for size in experts)]))


def site_bytes(width: int, settings: StatisticsParams) -> int:
    """Bytes of a site while it is summed and written."""
    return TOTALS * _totals(width, settings) + _waiting(width, settings)


def _totals(width: int, settings: StatisticsParams) -> int:
    """Bytes of a Hessian and a histogram. With several shards, the sum so far and the next shard's are in memory."""
    hessians = (1 if settings.shards == 1 else 2) if settings.hessian else 0
    return 8 * width**2 * hessians + 12 * n_buckets(settings.mantissa_bits) * width


def _waiting(width: int, settings: StatisticsParams) -> int:
    """Bytes of the tokens that wait for their product with themselves."""
    return 4 * BUFFERED * width if settings.hessian else 0


def weight_bytes(model: nn.Module, wanted: Names = lambda name: True) -> int:
    """Bytes of the parameters that `wanted` selects, shared ones once; they may be on the meta device."""
    return sum({id(x): x.numel() * x.element_size() for name, x in model.named_parameters() if wanted(name)}.values())


def gib(size: float) -> str:
    """Bytes in words: 2.4 GiB."""
    return f"{size / 2**30:.1f} GiB"


def hessian_bytes(model: nn.Module, ignore: Sequence[str]) -> int:
    """Upper bound on the bytes of one set's Hessians (one site per layer); weights may be on the meta device."""
    return 8 * sum(width_of(layer) ** 2 for layer in watched_layers(model, ignore).values())


def width_of(layer: nn.Module) -> int:
    """Width of the input of a watched layer; an upper bound where that is not clear from the shape."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        # A Linear stores its weight as (out, in), a Conv1D as (in, out).
        return int(weight.shape[1 if isinstance(layer, nn.Linear) else 0])
    return max(x.shape[-1] for x in layer.parameters(recurse=False))


def free_bytes(device: str) -> int:
    """Free memory of the device in bytes; on the CPU limited by the container and by `ulimit`, and divided
    among the workers of this machine."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = min(int(psutil.virtual_memory().available), _left_to_process())
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(allowed) - int(used.read_text())))
    return free // workers_here()


def _left_to_process() -> int:
    """Bytes that this process may still take under the limits set on it (`ulimit -v`, `ulimit -d`)."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # macOS, Windows
        return sys.maxsize
    used = process.memory_info()
    left = [
        limit - size
        for kind, size in ((psutil.RLIMIT_AS, used.vms), (psutil.RLIMIT_DATA, used.data))
        if (limit := process.rlimit(kind)[0]) != psutil.RLIM_INFINITY
    ]
    return max(0, min(left, default=sys.maxsize))
