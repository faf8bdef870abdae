"""Collects the shards of a calibration set in several processes and merges them to the bytes of one process.

A worker reads the set and the model itself, writes its shard's statistics into a folder and returns the path. Sites are
merged one at a time, in the order of the shards, so the bytes are those of one process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.layerwise import Collection, CollectionInputs
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import collect_pieces
from plumbline.activation_stats.sketch import ActivationStats, merge
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.store import HEADER, TENSORS, load, save, save_pieces
from plumbline.activation_stats.totals import shards
from plumbline.artifact import read_json, to_disk
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.threads import product_threads
from plumbline.execution.share_out import share_out


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
    key: str
    """Digest of everything that decides the statistics of all shards."""
    folder: Path
    """Existing folder of all shards."""

    @property
    def out(self) -> Path:
        """A folder that is there once the shard is complete; until then its parts are beside it.

        Its name differs by key: a worker whose parent was killed may still write a shard of other settings.
        """
        return self.folder / f"shard-{self.number}.{self.key[:16]}"


def collect_shard(shard: Shard) -> Path:
    """Collect the statistics of one shard into its folder and return the folder."""
    if Pieces(shard.out, shard.key).is_ours:
        return shard.out  # an earlier run, which was killed, completed it
    torch.set_num_threads(shard.threads)
    source = read_source(shard.calibration_set, shard.settings)
    run = shards(sorted(source.samples, key=lambda sample: sample[0]), shard.settings.shards)[shard.number]
    alone = shard.settings.model_copy(update={"shards": 1})
    known: dict[str, Any] = {
        "base_model_digest": shard.base.digest(),
        "fingerprint": source.fingerprint,
        "masks": source.masks,
    }
    draft = shard.out.with_name(f"{shard.out.name}.draft")
    pieces = Pieces(draft, shard.key)
    if shard.layerwise:
        collection = Collection(shard.base.streamed(), CollectionInputs(run, alone, **known))
        collect_pieces(collection, pieces, draft, shard.in_memory)
        save_pieces(pieces, collection.names, draft, {})
    else:
        pieces.claim()
        save(collect(shard.base.load(), run, alone, **known), draft, {})
    for name in (TENSORS, HEADER):
        to_disk(draft / name)
    shutil.rmtree(shard.out, ignore_errors=True)  # of another key
    draft.rename(shard.out)
    return shard.out


def collected_by_workers(
    calibration_set: Path,
    base: BaseCheckpoint,
    settings: StatisticsParams,
    layerwise: bool,
    execution: ExecutionParams,
    pieces: Pieces,
    progress: Callable[[int], object] | None = None,
) -> Iterator[ActivationStats]:
    """Yield what `collect` returns for the set, site by site.

    Args:
        pieces: claimed; its folder holds the statistics of the shards and must exist until the last site is yielded.
            Complete shards, and complete layers of others, of the same key are not collected again.
        progress: called after each shard with its number of tokens.

    Raises:
        RuntimeError: the worker of a shard died in every attempt.
        ValueError: as `collect`, or Ray is requested and not installed.
    """
    ordered = sorted(read_source(calibration_set, settings).samples, key=lambda sample: sample[0])
    jobs = []
    for number, run in enumerate(shards(ordered, settings.shards)):
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
                pieces.key,
                pieces.folder.resolve(),
            )
        )
    folders = share_out(
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
    """Yield the statistics of shards on disk, merged in order, site by site; `settings` holds the number of shards.

    Raises:
        ValueError: a shard was collected with other settings.
    """
    alone = settings.model_copy(update={"shards": 1})
    stats = [load(folder, []) for folder in folders]
    for folder, shard in zip(folders, stats, strict=True):
        if shard.settings != alone:
            raise ValueError(
                f"{folder}: found statistics of the settings {shard.settings}, expected {alone}; remove the folder and "
                "run the step again"
            )
    yield replace(reduce(merge, stats), settings=settings)
    names = sorted({name for folder in folders for name in read_json(folder / HEADER)["sites"]})
    for name in names:
        site = reduce(merge, [load(folder, [name]) for folder in folders])
        yield replace(site, settings=settings, unreached=())
