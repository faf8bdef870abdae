"""Blocks of samples embedded by other processes.

A block is what one process would decode and embed together, so that batches, and with them bits, are the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.threads import product_threads
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import share_out
from plumbline.sample_features.engine import Engine
from plumbline.sample_features.params import FeatureParams

Place = tuple[str, int]
"""Shard and row of a sample."""


@dataclass(frozen=True)
class Block:
    """The job of a worker."""

    params: FeatureParams
    embedder: Path
    base: BaseCheckpoint
    samples: Path
    file: Path
    """Token ids, one sample after the other, int32; beside it the samples' lengths, int64."""
    count: int
    threads: int

    @property
    def lengths(self) -> Path:
        """Where the lengths are."""
        return self.file.with_suffix(".lengths.npy")

    @property
    def embeddings(self) -> Path:
        """Where the worker writes the embeddings, float16 (count, dimension)."""
        return self.file.with_suffix(".embeddings.npy")


@lru_cache(maxsize=1)
def _engine(params: FeatureParams, embedder: Path, base: BaseCheckpoint, samples: Path) -> Engine:
    return Engine(params, embedder, base, samples)


def embed_block(block: Block) -> None:
    """Embed the samples of a block."""
    import torch

    torch.set_num_threads(block.threads)
    engine = _engine(block.params, block.embedder, block.base, block.samples)
    ids = np.split(np.load(block.file), np.cumsum(np.load(block.lengths))[:-1])
    embeddings = np.zeros((block.count, engine.dimension), np.float16)
    for positions, values in engine.embed(ids):
        embeddings[positions] = values
    np.save(block.embeddings, embeddings, allow_pickle=False)


def embedded(
    engine: Engine,
    blocks: Iterable[Sequence[tuple[str, int, NDArray[np.int32]]]],
    scratch: Path,
    execution: ExecutionParams,
    progress: Callable[[int], object],
) -> Iterator[tuple[list[Place], NDArray[np.float16]]]:
    """Yield the places of each block's samples and their embeddings, float16 (samples, dimension), in order.

    Args:
        scratch: an existing folder for what goes to the workers and comes back.
        progress: called with the number of samples of a finished block.

    Raises:
        as `Engine.embed` and `share_out`.
    """
    places: list[list[Place]] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        jobs = []
        for number, block in enumerate(blocks):
            job = Block(
                engine.params,
                engine.folder.resolve(),
                engine.base,
                engine.samples.resolve(),
                Path(folder).resolve() / f"{number}.npy",
                len(block),
                product_threads(),
            )
            np.save(job.file, np.concatenate([ids for _, _, ids in block]), allow_pickle=False)
            np.save(job.lengths, np.array([len(ids) for _, _, ids in block], np.int64), allow_pickle=False)
            places.append([(shard, row) for shard, row, _ in block])
            jobs.append(job)
        share_out(embed_block, jobs, execution, lambda job: progress(job.count))
        for job, here in zip(jobs, places, strict=True):
            yield here, np.load(job.embeddings)
