"""The body of every asset: record the step in DVC, build the artifact, and report it to Dagster."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.execution.params import ExecutionParams
from plumbline.execution.worker_check import checked_workers
from plumbline.graph.declared import declare
from plumbline.graph.failure import explained
from plumbline.graph.launch import launched
from plumbline.graph.metadata import as_metadata as as_metadata  # for the asset definitions
from plumbline.graph.metadata import metadata_of
from plumbline.graph.preflight import require_ready
from plumbline.graph.run_log import logged
from plumbline.graph.shared_steps import (
    COMPUTED_ON,
    SHARED,
    Failed,
    being_built,
    compute_ahead,
    is_shared,
    ready,
    repeat,
)
from plumbline.graph.table import table_metadata
from plumbline.params import load_params
from plumbline.versioning.built import discard, take
from plumbline.versioning.code import Library, library_of, link_library
from plumbline.versioning.code import code_version as version_in
from plumbline.versioning.lock import Entry, read_lock, stage_name
from plumbline.versioning.pipeline import resolved
from plumbline.versioning.recording import InputsChanged, recording
from plumbline.versioning.recording import Step as Step  # for the asset definitions
from plumbline.versioning.same_code import RecordedCode
from plumbline.versioning.status import unfinished_mark
from plumbline.workspace import workspace_root

Build = Callable[[Step, str, Path], None]
"""(step, partition key or "", empty folder): computes the artifact and writes it there."""
Summary = Callable[[Path], Mapping[str, Any]]
"""Folder of an artifact -> counts and names, JSON-able."""
Overrides = Callable[[str], Mapping[str, Any]]
"""Partition key -> parameters that this launch overrides."""
After = Callable[[Step, str], Mapping[str, Any]]
"""Runs after the output is published, for steps that need its hash (MLflow); returns further metadata."""

# Single-run backfills are marked beta; tests/integration covers what is used here.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`")

OWNERS = ["team:plumbline"]
FRONT_DOOR = "front_door"
"""Tag of a run whose command has looked ahead for all its steps: which command it was."""

_A: Any = dg.AutomationCondition
_UPSTREAM_IS_NEWER = _A.any_deps_match(_A.newly_updated()).since(_A.newly_updated())
"""A dependency was updated after this asset. Dagster compares the two times only in this form. Otherwise a change that
comes between the end of a run and the next tick would count as handled by that run."""
_CHANGED = (
    # The inbox sensor launches the run for a change of the inbox.
    _A.any_deps_match(_A.data_version_changed()).ignore(dg.AssetSelection.assets("inbox"))
    | _A.newly_missing()
    | _A.code_version_changed()
).since(_A.newly_requested() | (_A.newly_updated() & ~_UPSTREAM_IS_NEWER) | _A.initial_evaluation())


def _upstream_is_moving(levels: int) -> Any:
    """Whether an ancestor at most `levels` steps away is running, or about to.

    `will_be_requested()` is not enough: it does not work across different partitions definitions.
    """
    moving = _CHANGED | _A.in_progress()
    condition = moving
    for _ in range(levels - 1):
        condition = moving | _A.any_deps_match(condition)
    return _A.any_deps_match(condition)


ON_NEW_INPUT = (
    _CHANGED
    & ~_A.any_deps_missing()
    # An evaluation depends on the samples directly and, through the calibration set, in four steps. It has to wait.
    & ~_upstream_is_moving(4)
    # Passed, or not run since: artifacts from `dvc pull` have not been checked here.
    & _A.all_deps_match(_A.all_checks_match(_A.check_passed() | _A.missing(), blocking_only=True))
    & ~_A.in_progress()
).with_label("on new input")
"""Runs a partition when the content of a dependency changed. `eager()` would also run it when an upstream asset was
rebuilt with the same bytes (dagster#25439)."""


@dataclass(frozen=True)
class _FinishedStep:
    key: str
    step: Step
    metadata: dict[str, Any]


def base_model(step: Step) -> BaseCheckpoint:
    """The base model that the step's parameters name."""
    return BaseCheckpoint.of(ModelParams.model_validate(step.params["model"]), step.root)


def code_version(asset: str) -> str:
    """Code version of an asset, computed from the library as it was when the definitions were loaded."""
    return version_in(asset, _library(workspace_root()))


@cache
def _library(root: Path) -> Library:
    with contextlib.suppress(OSError):  # a read-only workspace
        link_library(root)
    return library_of(root)


def materialize(
    context: dg.AssetExecutionContext,
    build: Build,
    summary: Summary,
    overrides: Overrides | None = None,
    after: After | None = None,
) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
    """Run the body of an asset: one DVC step per partition of the run.

    A run over several partitions (single-run backfill) loads models once. Dagster gives all of them one data version.
    A second event per partition follows with the correct one, so that staleness is tracked per partition.
    """
    asset = context.asset_key.to_user_string()
    if (mine := being_built()) is not None:  # this process computes, and another one publishes
        build(mine[0], context.partition_key, mine[1])
        yield dg.MaterializeResult()
        return
    if FRONT_DOOR not in context.run.tags:
        with explained():
            for change in declare(workspace_root()):
                context.log.info(change)
            require_ready(workspace_root(), list(_stages_of_run(context)))
    keys = list(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else [""]
    steps: list[_FinishedStep] = []
    failed = _shared_out(context, asset, keys)  # by key
    try:
        for key in keys:
            with reported(context, stage_name(asset, key or None)):
                if key in failed:
                    raise failed[key].error()
                steps.append(_one(asset, key, build, summary, overrides, after))
            if len(keys) > 1:
                context.log.info(f"{asset} {key} ({len(steps)} of {len(keys)}): {steps[-1].step.md5}")
    except BaseException:
        yield from (_event(context, finished) for finished in steps)  # finished partitions stay on record
        raise
    if len(steps) == 1:
        yield dg.MaterializeResult(data_version=dg.DataVersion(steps[0].step.md5), metadata=steps[0].metadata)
    else:
        yield dg.MaterializeResult(metadata={"partitions": len(steps)})
        yield from (_event(context, finished) for finished in steps)


def _shared_out(context: dg.AssetExecutionContext, asset: str, keys: Sequence[str]) -> dict[str, Failed]:
    """Have workers compute the steps, if params.yaml or the launch says so; returns what failed by key.

    `dvc repro` makes one run per step: its first one has those computed, too, that are ready and come next.
    """
    if asset not in SHARED:
        return {}
    root, config = workspace_root(), dict(context.op_execution_context.op_config or {})
    with reported(context, asset):
        if context.run.tags.get(FRONT_DOOR) == "dvc repro" and load_params(root).execution.shares_out:
            keys = [*keys, *(key for key in ready(root, asset) if key not in keys)]
        options = {name: value for name, value in config.items() if name in ExecutionParams.model_fields}
        execution = launched(load_params(root).execution, options, asset)
        if not is_shared(asset, len(keys), execution):
            return {}
        context.log.info(f"{asset}: {len(keys)} steps, shared out to {execution}")
        return compute_ahead(root, asset, keys, execution, config)


def _stages_of_run(context: dg.AssetExecutionContext) -> Iterator[str]:
    """The stages of a run that a person launched in the UI, or a sensor: nobody has looked ahead for it."""
    stages, tags = resolved(workspace_root()), context.run.tags
    keys = [*context.partition_keys] if context.has_partition_key_range else [tags.get("dagster/partition")]
    for asset in context.run.asset_selection or {context.asset_key}:
        name = asset.to_user_string()
        yield from (stage for stage in {name, *(stage_name(name, key) for key in keys)} if stage in stages)


@contextlib.contextmanager
def reported(context: dg.AssetExecutionContext | dg.OpExecutionContext, step: str) -> Iterator[None]:
    """Within the context, the log of the run says what the library says and how far it is, and an expected error is a
    failure of the run with a sentence."""
    with logged(step, context.log.log), explained():
        yield


def _one(
    asset: str, key: str, build: Build, summary: Summary, overrides: Overrides | None, after: After | None
) -> _FinishedStep:
    started = time.perf_counter()
    name, changed = stage_name(asset, key or None), overrides(key) if overrides else {}
    unfinished, built = unfinished_mark(workspace_root(), name), None
    with recording(workspace_root(), name, changed) as (step, folder):
        _require_loaded_code(step, asset)
        if step.is_current:
            discard(step)
        elif (built := take(step, folder)) is None:
            with checked_workers(RecordedCode(asset, step.code_version, step.root).require):
                build(step, key, folder)
        if after:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            unfinished.touch()
    step.seconds = round(time.perf_counter() - started + (built.seconds if built else 0.0), 2)
    if built:
        repeat(built)
    further = dict(after(step, key)) if after else {}
    unfinished.unlink(missing_ok=True)
    if overrides:
        further["overridden"] = sorted(changed)
    record = {
        "seconds": step.seconds,
        "path": dg.MetadataValue.path(str(step.out)),
        "dvc_stage": step.name,
        "dvc_md5": step.md5,
        "params": step.params,
        "inputs": step.inputs,
    }
    if built:
        record |= {COMPUTED_ON: built.host, "worker": built.pid, "worker_seconds": built.seconds}
    metadata = metadata_of(step.root, step.out, {**summary(step.out), **further}, record)
    return _FinishedStep(key, step, metadata | table_metadata(asset, step.out))


def _require_loaded_code(step: Step, asset: str) -> None:
    """Raise InputsChanged if the library on disk, whose version would be recorded, is not the one that runs."""
    if step.code_version and step.code_version != code_version(asset):
        raise InputsChanged(
            f"the code of {asset} changed while this process ran, which has the code of before: start it again"
        )


def _event(context: dg.AssetExecutionContext, finished: _FinishedStep) -> dg.AssetMaterialization:
    entry = read_lock(finished.step.root)[finished.step.name]
    tags = provenance_tags(context.instance, context.assets_def.asset_deps[context.asset_key], entry)
    return dg.AssetMaterialization(
        context.asset_key, partition=finished.key or None, tags=tags, metadata=finished.metadata
    )


def provenance_tags(
    instance: dg.DagsterInstance,
    parents: set[dg.AssetKey],
    entry: Entry,
) -> dict[str, str]:
    """Dagster's provenance tags of a materialization, from a dvc.lock entry.

    Without them Dagster falls back to comparing timestamps. For a partitioned parent it looks at events after the event
    pointer, so the pointer is the parent's newest event of any partition.
    """
    tags = {
        "dagster/data_version": entry.md5,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": entry.code_version,
    }
    for parent in parents:
        name = parent.to_user_string()
        folder = f"data/{name}"
        md5 = next(
            (v for path, v in entry.deps.items() if path == folder or Path(path).parent.as_posix() == folder), "INITIAL"
        )
        latest = instance.fetch_materializations(parent, limit=1).records
        tags[f"dagster/input_data_version/{name}"] = md5
        tags[f"dagster/input_event_pointer/{name}"] = str(latest[0].storage_id) if latest else "NULL"
    return tags
