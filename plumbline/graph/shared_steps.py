"""Steps of an asset computed by other processes, before the asset's run publishes them one by one.

Workers only compute: into folders that are addressed by what decides their content (versioning/built.py). The process
that runs the asset takes the folders in order and does what it does with an output of its own: it publishes it, writes
dvc.lock, and logs in MLflow. So there is one writer, and no byte depends on who computed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, replace_text
from plumbline.base_model.threads import product_threads
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import WorkerPlace, share_out, shares_out
from plumbline.graph.failure import raised_by_us, sentence
from plumbline.graph.run_log import logged
from plumbline.progress import Bar
from plumbline.versioning.built import Built, clear, draft, finish, identity, is_built
from plumbline.versioning.lock import stage_name
from plumbline.versioning.pipeline import resolved
from plumbline.versioning.recording import InputsChanged, Step, planned
from plumbline.versioning.same_code import RecordedCode
from plumbline.versioning.scratch import alone, parts_of, remove
from plumbline.versioning.status import changed_stages
from plumbline.workspace import VARIABLE

log = logging.getLogger(__name__)

SHARED = ("calibration_set", "activation_stats", "quantized_model", "evaluation")
"""The assets whose partitions are shared out."""
PLACES = ".plumbline/places.json"
"""Hash of an output -> [Ray's id of the machine that wrote it, bytes]."""
COMPUTED_ON = "computed_on"
"""Metadata of a step that a worker computed: its machine."""
NEVER = 1e9
"""Seconds between two reports of progress in a worker, whose log nobody reads while it runs."""
_building: ContextVar[tuple[Step, Path] | None] = ContextVar("_building", default=None)


class StepFailed(RuntimeError):
    """What a step raised in a worker; the message is its own."""


class WorkerFault(Exception):
    """An error in a worker that is a fault of the library, or of another one; the message is its stack."""


@dataclass(frozen=True)
class StepJob:
    """A step for a worker."""

    step: Step
    asset: str
    key: str
    config: Mapping[str, Any]
    """Of the launch."""
    threads: int
    """Of a matrix product, as in the process that shares out: in float32 they decide bits."""
    code: RecordedCode


@dataclass(frozen=True)
class Failed:
    """A step that did not succeed."""

    message: str
    is_expected: bool
    """Whether the message is a sentence of the library, and no stack."""

    def error(self) -> Exception:
        """The error to raise in its place."""
        return StepFailed(self.message) if self.is_expected else WorkerFault(self.message)


def compute_ahead(
    root: Path, asset: str, keys: Sequence[str], execution: ExecutionParams, config: Mapping[str, Any]
) -> dict[str, Failed]:
    """Have workers compute the outputs of these partitions, and return what failed by key.

    Args:
        config: of the launch.

    Raises:
        as `share_out`.
    """
    from filelock import FileLock

    (locks := root / ".plumbline" / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "sharing_out.lock"):  # what one run has computed, the next one finds
        steps, failed = _planned(root, asset, keys)
        wanted = {step.name: identity(step) for step in steps.values()}
        clear(root, wanted)
        threads = product_threads()
        jobs = [
            StepJob(replace(step, reads=[]), asset, key, config, threads, RecordedCode(asset, step.code_version, root))
            for key, step in steps.items()
            if not is_built(step)
        ]
        places = _read_places(root)
        with Bar(total=len(jobs), desc=asset, unit="step") as bar:
            results = share_out(
                compute, jobs, execution, lambda job: bar.update(), lambda job: near(places, job.step.inputs)
            )
        clear(root, wanted)  # drafts of workers that were killed
        _write_places(root, {r.md5: (r.node, r.size) for r in results if isinstance(r, Built) and r.node})
    return failed | {job.key: result for job, result in zip(jobs, results, strict=True) if isinstance(result, Failed)}


def _planned(root: Path, asset: str, keys: Sequence[str]) -> tuple[dict[str, Step], dict[str, Failed]]:
    """The steps by key, and those whose inputs are not what they must be."""
    steps, failed = dict[str, Step](), dict[str, Failed]()
    for key in keys:
        try:
            steps[key] = planned(root, stage_name(asset, key))
        except InputsChanged as error:
            failed[key] = Failed(str(error), is_expected=True)
    return steps, failed


def is_shared(asset: str, count: int, execution: ExecutionParams) -> bool:
    """Whether so many partitions of an asset, in one run, are computed by other processes."""
    return asset in SHARED and count > 1 and shares_out(execution)


def ready(root: Path, asset: str) -> list[str]:
    """The partitions of an asset that are out of date, and of which nothing upstream is."""
    if asset not in SHARED:
        return []
    changed, stages = changed_stages(root), resolved(root)
    makers = {out: name for name, stage in stages.items() for out in stage.outs}

    def waits(name: str) -> bool:
        above = {makers[dep] for dep in stages[name].deps if dep in makers}
        return any(other in changed or waits(other) for other in above)

    return [name.partition("@")[2] for name in changed if name.split("@")[0] == asset and not waits(name)]


def near(places: Mapping[str, tuple[str, int]], inputs: Mapping[str, str]) -> str:
    """Ray's id of the machine that wrote the largest of these inputs; empty if none is known."""
    known = [places[md5] for md5 in inputs.values() if md5 in places]
    return max(known, key=lambda place: place[1])[0] if known else ""


# ---------------------------------------------------------------------------------------------------------------------
# In a worker


def compute(job: StepJob) -> Built | Failed:
    """Compute the output of a step into its folder, by the asset's own function."""
    import torch

    os.environ[VARIABLE] = str(job.step.root)
    torch.set_num_threads(job.threads)
    started, said = time.perf_counter(), list[tuple[int, str]]()
    try:
        job.code.require()
        noted = logged(job.step.name, lambda level, text: said.append((level, text)), NEVER)
        with noted, alone(job.step.root, job.step.name), draft(job.step) as out:
            _build(job, out)
            seconds = round(time.perf_counter() - started, 2)
            built = finish(job.step, out, asdict(WorkerPlace.here()), seconds, tuple(said))
            remove(parts_of(job.step.root, job.step.name))
            return built
    except Exception as error:
        if isinstance(error, OSError) or raised_by_us(error):
            return Failed(sentence(error), is_expected=True)
        return Failed(traceback.format_exc(), is_expected=False)


def _build(job: StepJob, out: Path) -> None:
    import dagster as dg

    from plumbline.graph.definitions import load_definitions
    from plumbline.graph.resources import resources
    from plumbline.params import load_params

    root = job.step.root
    asset: Any = load_definitions(root).get_assets_def(dg.AssetKey(job.asset))
    known = resources(root, load_params(root))
    context = dg.build_asset_context(
        resources={key: known[key] for key in asset.required_resource_keys if key in known},
        partition_key=job.key,
        asset_config=dict(job.config) or None,
    )
    token = _building.set((job.step, out))
    try:
        list(asset(context))
    finally:
        _building.reset(token)


def being_built() -> tuple[Step, Path] | None:
    """The step that this worker computes, and the folder for its output; None in a process that publishes."""
    return _building.get()


# ---------------------------------------------------------------------------------------------------------------------
# What is said, and remembered


def repeat(built: Built) -> None:
    """Log what the library said in the worker."""
    for level, text in built.said:
        log.log(level, "%s", text)


def shown(counts: Mapping[str, int]) -> str:
    """Steps by machine, on one line: `3 on a, 2 on b`; many machines are cut short.

    Args:
        counts: host -> steps.
    """
    hosts = Counter(counts).most_common()
    text = ", ".join(f"{count} on {host}" for host, count in hosts[:3])
    rest = sum(count for _, count in hosts[3:])
    return f"{text}, {rest} on {len(hosts) - 3} other machines" if rest else text


def _read_places(root: Path) -> dict[str, tuple[str, int]]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # absent or corrupt: any machine will do
        content: dict[str, Any] = read_json(root / PLACES)
        return {md5: (str(node), int(size)) for md5, (node, size) in content.items()}
    return {}


def _write_places(root: Path, new: Mapping[str, tuple[str, int]]) -> None:
    if new:
        places = {**_read_places(root), **new}
        replace_text(root / PLACES, json.dumps(dict(list(places.items())[-10_000:])))
