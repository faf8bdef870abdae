"""Collects the shards of a calibration set in several processes and merges them to the bytes of one process.

A worker reads the set and the model itself, writes its shard's statistics into a folder and returns the path. Sites are
merged one at a time, in the order of the shards, so the bytes are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.executor import shared_out
from plumbline.activation_stats.layerwise import layer_by_layer
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, merge
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.store import HEADER, load, save_parts
from plumbline.activation_stats.totals import shards
from plumbline.artifact import read_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.threads import product_threads


@dataclass(frozen=True)
class Shard:
    """The job of a worker."""

    number: int
    """From 0."""
    tokens: int
    calibration_set: Path
    base: BaseCheckpoint
    settings: StatisticsParams
    layerwise: bool
    in_memory: int
    """Bytes of hidden states; see `layer_by_layer`."""
    threads: int
    out: Path
    """An existing, empty folder."""


def collect_shard(shard: Shard) -> Path:
    """Collect the statistics of one shard into its folder and return the folder."""
    torch.set_num_threads(shard.threads)
    source = read_source(shard.calibration_set, shard.settings)
    run = shards(sorted(source.samples, key=lambda sample: sample[0]), shard.settings.shards)[shard.number]
    alone = shard.settings.model_copy(update={"shards": 1})
    digest = shard.base.digest()
    if shard.layerwise:
        streamed = shard.base.streamed()
        parts: Iterator[ActivationStats] = layer_by_layer(
            streamed,
            run,
            alone,
            shard.out,
            base_model_digest=digest,
            fingerprint=source.fingerprint,
            masks=source.masks,
            in_memory=shard.in_memory,
        )
    else:
        model = shard.base.load()
        stats = collect(model, run, alone, base_model_digest=digest, fingerprint=source.fingerprint, masks=source.masks)
        parts = iter([stats])
    save_parts(parts, shard.out, {})
    return shard.out


def collected_by_workers(
    calibration_set: Path,
    base: BaseCheckpoint,
    settings: StatisticsParams,
    layerwise: bool,
    execution: ExecutionParams,
    scratch: Path,
    progress: Callable[[int], object] | None = None,
) -> Iterator[ActivationStats]:
    """Yield what `collect` returns for the set, site by site.

    Args:
        scratch: an existing folder for the statistics of the shards, which must exist until the last site is
            yielded.
        progress: called after each shard with its number of tokens.

    Raises:
        RuntimeError: the worker of a shard died in every attempt.
        ValueError: as `collect`, or Ray is requested and not installed.
    """
    ordered = sorted(read_source(calibration_set, settings).samples, key=lambda sample: sample[0])
    jobs = []
    for number, run in enumerate(shards(ordered, settings.shards)):
        (out := scratch / f"shard-{number}").mkdir()
        jobs.append(
            Shard(
                number,
                sum(len(ids) for _, ids in run),
                calibration_set.resolve(),
                base,
                settings,
                layerwise,
                int(execution.hidden_gib * 2**30),
                _threads(base.folder, execution.workers),
                out.resolve(),
            )
        )
    folders = shared_out(
        collect_shard, jobs, execution, lambda job: progress(job.tokens) if progress is not None else None
    )
    yield from merged(folders, settings)


def _threads(model: Path, workers: int) -> int:
    """Threads of each worker: an equal share of the cores, where that cannot change a bit.

    In float32 it can (see base_model/threads.py), so there a worker has as many threads as a single process would.
    """
    config = read_json(model / "config.json")
    if config.get("dtype", config.get("torch_dtype")) != "bfloat16":
        return product_threads()
    return max(1, product_threads() // workers)


def merged(folders: Sequence[Path], settings: StatisticsParams) -> Iterator[ActivationStats]:
    """Yield the statistics of shards on disk, merged in order, site by site; `settings` holds the number of shards."""
    stats = reduce(merge, [load(folder, []) for folder in folders])
    yield replace(stats, settings=settings)
    names = sorted({name for folder in folders for name in read_json(folder / HEADER)["sites"]})
    for name in names:
        site = reduce(merge, [load(folder, [name]) for folder in folders])
        yield replace(site, settings=settings, unreached=())
