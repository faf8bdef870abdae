"""What more workers give, and where they stop: `python -m benchmarks.grid_schedule WORKSPACE`.

Reads from the Dagster history of a finished workspace how long each of its steps took, and schedules them on 1, 8, 64
and 512 workers, longest first (list scheduling). Nothing is run. With `--choices` and `--schemes` the grid is enlarged
with steps of the measured mean; `--scale` lengthens what workers compute, as a larger model does.

The model of a run:
- a step of calibration_set, activation_stats, quantized_model or evaluation is computed by a worker, and then published
  (hashed, recorded in dvc.lock and MLflow) by the one process that runs the graph: in as many seconds as measured where
  the workspace was run with workers, else in `--publish` seconds;
- every other step runs in that one process;
- in the column "by stage", as `plumbline run` does it, the steps of an asset are computed, then published, then the
  next asset begins; in "free" a step starts as soon as its own inputs are published: what is left to gain.
"""

from __future__ import annotations

import argparse
import heapq
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import mean

from plumbline.graph.shared_steps import SHARED

WORKERS = (1, 8, 64, 512)
PAIRED = ("quantized_model", "evaluation")
"""Assets with a step per choice and scheme; the other partitioned ones have one per choice."""
PUBLISH = 1.0
"""Seconds to publish a step, if none was measured."""


@dataclass(frozen=True)
class Timed:
    """A step and what it takes."""

    name: str
    """As in dvc.lock."""
    reads: tuple[str, ...]
    """The steps whose outputs it reads."""
    compute: float
    """Seconds that a worker may take over."""
    alone: float
    """Seconds in the process that runs the graph."""

    @property
    def asset(self) -> str:
        """The asset."""
        return self.name.split("@")[0]


def by_stage(steps: Sequence[Timed], workers: int) -> dict[str, float]:
    """Seconds of each part of a run that takes one asset after the other: part -> seconds; their sum is the wall time.

    Args:
        steps: upstream first, those of an asset together.
    """
    parts: dict[str, float] = {}
    for asset, group in groupby(steps, key=lambda step: step.asset):
        those = list(group)
        parts[f"{asset}, by workers"] = makespan([step.compute for step in those], workers)
        one = f"{asset}, published one by one" if asset in SHARED else f"{asset}, in one process"
        parts[one] = sum(step.alone for step in those)
    return parts


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until independent jobs are done, if a free worker takes the longest that waits."""
    free = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def freely(steps: Sequence[Timed], workers: int) -> float:
    """Seconds until all is done, if a step starts as soon as what it reads is published and a worker is free."""
    by_name, waits = {step.name: step for step in steps}, {step.name: set(step.reads) for step in steps}
    readers: dict[str, list[str]] = {}
    for step in steps:
        for name in step.reads:
            readers.setdefault(name, []).append(step.name)
    ready = [(-step.compute, step.name) for step in steps if not step.reads]
    heapq.heapify(ready)
    events: list[tuple[float, bool, str]] = []  # (time, it is published, step)
    now, free, publisher = 0.0, workers, 0.0
    while ready or events:
        while ready and (free or not ready[0][0]):  # what takes a worker no time needs none
            cost, name = heapq.heappop(ready)
            free -= cost < 0
            heapq.heappush(events, (now - cost, False, name))
        now, is_published, name = heapq.heappop(events)
        if not is_published:
            free += by_name[name].compute > 0
            publisher = max(publisher, now) + by_name[name].alone
            heapq.heappush(events, (publisher, True, name))
            continue
        for reader in readers.get(name, ()):
            waits[reader].discard(name)
            if not waits[reader]:
                heapq.heappush(ready, (-by_name[reader].compute, reader))
    return now


def enlarged(steps: Sequence[Timed], choices: int, schemes: int) -> list[Timed]:
    """The steps of a grid of so many choices and schemes, each as long as the mean of its asset's measured steps."""
    by_asset = {asset: list(group) for asset, group in groupby(steps, key=lambda step: step.asset)}
    per_choice = {asset for asset, group in by_asset.items() if "@" in group[0].name and asset not in PAIRED}
    keys = {
        asset: [f"{c}" for c in range(choices)]
        if asset in per_choice
        else [f"{c}-{s}" for c in range(choices) for s in range(schemes)]
        if asset in PAIRED
        else [""]
        for asset in by_asset
    }
    larger = []
    for asset, group in by_asset.items():
        compute, alone = mean(step.compute for step in group), mean(step.alone for step in group)
        read = list(dict.fromkeys(name.split("@")[0] for name in group[0].reads if name.split("@")[0] in by_asset))
        for key in keys[asset]:
            reads = tuple(name for other in read for name in _names(other, keys[other], key))
            larger.append(Timed(f"{asset}@{key}" if key else asset, reads, compute, alone))
    return larger


def _names(asset: str, keys: Iterable[str], of: str) -> list[str]:
    """The steps of `asset` that a step with this key reads: those of its own choice, or all."""
    if keys == [""]:
        return [asset]
    own = [key for key in keys if key in (of, of.split("-")[0])]
    return [f"{asset}@{key}" for key in (own if of else keys)]


def measured(root: Path, publish: float) -> list[Timed]:
    """The steps of a workspace with their seconds, upstream first, from its Dagster history.

    Raises:
        ValueError: a step has never run here.
    """
    import dagster as dg

    from plumbline.graph.instance import instance
    from plumbline.versioning.facts import NAMED_OUTPUTS, STAGES
    from plumbline.versioning.pipeline import on_request, resolved

    skipped, stages = on_request(root), {n: s for n, s in resolved(root).items() if n not in STAGES}
    makers = {out: name for name, stage in stages.items() for out in stage.outs}
    steps = []
    with instance() as history:
        for name, stage in stages.items():
            if stage.asset in skipped:
                continue
            record = history.get_latest_data_version_record(
                dg.AssetKey(stage.asset), partition_key=name.partition("@")[2] or None
            )
            event = record.event_log_entry.asset_materialization if record else None
            if event is None or "seconds" not in event.metadata:
                raise ValueError(f"{root}: {name} has not run here; run `plumbline run` first")
            seconds = float(event.metadata["seconds"].value)  # type: ignore[arg-type]
            by_worker = event.metadata.get("worker_seconds")
            alone = seconds - float(by_worker.value) if by_worker else min(publish, seconds)  # type: ignore[arg-type]
            shared = stage.asset in SHARED
            reads = [makers[dep] for dep in stage.deps if dep in makers]
            if NAMED_OUTPUTS in stage.facts:
                reads += [made for made in stages if made.split("@")[0] in stage.facts[NAMED_OUTPUTS]]
            steps.append(Timed(name, tuple(reads), seconds - alone if shared else 0.0, alone if shared else seconds))
    return steps


def table(steps: Sequence[Timed], workers: Iterable[int]) -> str:
    """Markdown: a row per number of workers."""
    total = sum(step.compute + step.alone for step in steps)
    rows = [
        "| workers | by stage | speed-up | free | speed-up | the longest part, by stage |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for count in workers:
        parts = by_stage(steps, count)
        wall, free, longest = sum(parts.values()), freely(steps, count), max(parts, key=lambda part: parts[part])
        rows.append(
            f"| {count} | {wall:,.0f} s | {total / wall:.1f} × | {free:,.0f} s | {total / free:.1f} × | "
            f"{longest} ({100 * parts[longest] / wall:.0f} %) |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--choices", type=int, help="of an enlarged grid")
    parser.add_argument("--schemes", type=int, help="of an enlarged grid")
    parser.add_argument("--publish", type=float, default=PUBLISH, metavar="SECONDS")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the seconds of workers, for a larger model")
    options = parser.parse_args()
    root = options.workspace.resolve()
    os.environ["PLUMBLINE_ROOT"] = str(root)
    steps = measured(root, options.publish)
    if options.choices or options.schemes:
        steps = enlarged(steps, options.choices or 1, options.schemes or 1)
    steps = [replace(step, compute=step.compute * options.scale) for step in steps]
    print(f"{len(steps)} steps, {sum(step.compute for step in steps):,.0f} s for workers, "
          f"{sum(step.alone for step in steps):,.0f} s for the process that publishes\n")  # fmt: skip
    print(table(steps, WORKERS))


if __name__ == "__main__":
    main()
