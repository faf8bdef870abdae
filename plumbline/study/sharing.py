"""Cells of a study measured by other processes, into the cache of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.threads import product_threads
from plumbline.calibration_set.pool import Sources
from plumbline.evaluation.held_out import HeldOut
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import share_out
from plumbline.progress import Bar
from plumbline.quantized_model.params import SchemeParams
from plumbline.study.draws import Cell, Plan
from plumbline.study.measuring import measure_cells, missing_cells
from plumbline.study.params import StudyParams
from plumbline.study.result_cache import ResultCache

CELLS = 8
"""Cells of a job on a cluster: sets that are read together share samples, and a killed worker repeats so many."""


@dataclass(frozen=True)
class StudyPart:
    """The job of a worker: some cells of a study."""

    params: StudyParams
    schemes: Mapping[str, SchemeParams]
    settings: StatisticsParams
    samples: Path
    features: Path | None
    base: BaseCheckpoint
    held_out: HeldOut
    cache: ResultCache
    cells: tuple[Cell, ...]
    threads: int


def measure_part(part: StudyPart) -> int:
    """Measure some cells into the cache, and return their number."""
    torch.set_num_threads(part.threads)
    plan = Plan(part.params, Sources(part.samples, part.features, part.base), part.held_out)
    measure_cells(plan, part.schemes, part.settings, part.cache, part.cells)
    return len(part.cells)


def measure_by_workers(
    plan: Plan,
    schemes: Mapping[str, SchemeParams],
    settings: StatisticsParams,
    cache: ResultCache,
    execution: ExecutionParams,
) -> None:
    """Have workers measure the cells that the cache lacks; `measure_cells` then finds them there.

    A result does not depend on which others are measured with it, nor on the number of threads.

    Raises:
        as `measure_cells` and `share_out`.
    """
    todo = missing_cells(plan, schemes, cache)
    count = execution.workers if execution.address is None else -(-len(todo) // CELLS)
    count = min(count, len(todo))
    edges = [len(todo) * number // count for number in range(count + 1)] if count else []
    sources, threads = plan.sources, max(1, product_threads() // execution.workers)
    parts = [
        StudyPart(
            plan.params,
            schemes,
            settings,
            sources.samples,
            sources.features,
            sources.base,
            plan.held_out,
            cache,
            tuple(todo[start:stop]),
            threads,
        )
        for start, stop in pairwise(edges)
    ]
    with Bar(total=len(todo), desc="study", unit="set") as bar:
        share_out(measure_part, parts, execution, lambda part: bar.update(len(part.cells)))
