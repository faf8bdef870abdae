"""What every asset body does: record the step in DVC, build, and tell Dagster what came of it."""

from __future__ import annotations

import base64
import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.versioning.code import Library, library_of, link_library
from plumbline.versioning.code import code_version as version_in
from plumbline.versioning.lock import Entry, read_lock, stage_name
from plumbline.versioning.recording import Step as Step  # for the asset definitions
from plumbline.versioning.recording import recording
from plumbline.versioning.status import unfinished_mark
from plumbline.workspace import workspace_root

Build = Callable[[Step, str, Path], None]
"""(step, partition key or "", empty folder): computes the artifact and writes it there."""
Summary = Callable[[Path], Mapping[str, Any]]
"""Folder of an artifact -> counts and names, JSON-able."""
Overrides = Callable[[str], Mapping[str, Any]]
"""Partition key -> the parameters that this launch changes."""
After = Callable[[Step, str], Mapping[str, Any]]
"""Runs once the output is published, for what needs its hash (MLflow); returns further metadata."""

# Single-run backfills are marked beta; what we need of them is covered by tests/integration.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`")

OWNERS = ["team:plumbline"]
PREVIEW_BYTES = 150_000  # metadata lives in the event log

_A: Any = dg.AutomationCondition
_OVERTAKEN = _A.any_deps_match(_A.newly_updated()).since(_A.newly_updated())
"""Something it reads was made after it. Dagster compares the times of the two only in this form, so that a change
which comes right behind a run, before the next look, is not taken for handled by it."""
_CHANGED = (
    # A change of the inbox has a run of its own, from the inbox's sensor.
    _A.any_deps_match(_A.data_version_changed()).ignore(dg.AssetSelection.assets("inbox"))
    | _A.newly_missing()
    | _A.code_version_changed()
).since(_A.newly_requested() | (_A.newly_updated() & ~_OVERTAKEN) | _A.initial_evaluation())


def _upstream_is_moving(levels: int) -> Any:
    """Whether an ancestor up to that many steps away is running, or about to.

    `will_be_requested()` would not do: it does not see across partitions of another kind.
    """
    moving = _CHANGED | _A.in_progress()
    condition = moving
    for _ in range(levels - 1):
        condition = moving | _A.any_deps_match(condition)
    return _A.any_deps_match(condition)


ON_NEW_INPUT = (
    _CHANGED
    & ~_A.any_deps_missing()
    # An evaluation reads the samples at one step's distance, and at four by way of the calibration set: it waits.
    & ~_upstream_is_moving(4)
    # Passed, or not asked since: what `dvc pull` brought has not been checked here again.
    & _A.all_deps_match(_A.all_checks_match(_A.check_passed() | _A.missing(), blocking_only=True))
    & ~_A.in_progress()
).with_label("on new input")
"""Runs a partition when the content of something it reads changed. `eager()` would also run it when an upstream asset
was made again with the same bytes (dagster#25439)."""


@dataclass(frozen=True)
class _Made:
    key: str
    step: Step
    metadata: dict[str, Any]


def base_model(step: Step) -> BaseCheckpoint:
    """The base model that the step's parameters name."""
    return BaseCheckpoint.of(ModelParams.model_validate(step.params["model"]), step.root)


def code_version(asset: str) -> str:
    """Code version of an asset for its definition, as the library was when the definitions were loaded."""
    return version_in(asset, _library(workspace_root()))


@cache
def _library(root: Path) -> Library:
    with contextlib.suppress(OSError):  # a workspace that may only be read
        link_library(root)
    return library_of(root)


def materialize(
    context: dg.AssetExecutionContext,
    build: Build,
    summary: Summary,
    overrides: Overrides | None = None,
    after: After | None = None,
) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
    """Body of an asset: one DVC step per partition of the run.

    A run over several partitions (single-run backfill) loads models once. Dagster gives all its partitions one data
    version; a second event per partition, right behind, carries the true one, so that staleness follows each.
    """
    asset = context.asset_key.to_user_string()
    keys = list(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else [""]
    made: list[_Made] = []
    try:
        for key in keys:
            with _logged(context):
                made.append(_one(asset, key, build, summary, overrides, after))
            if len(keys) > 1:
                context.log.info(f"{asset} {key} ({len(made)} of {len(keys)}): {made[-1].step.md5}")
    except BaseException:
        yield from (_event(context, m) for m in made)  # what was finished stays on record
        raise
    if len(made) == 1:
        yield dg.MaterializeResult(data_version=dg.DataVersion(made[0].step.md5), metadata=made[0].metadata)
    else:
        yield dg.MaterializeResult(metadata={"partitions": len(made)})
        yield from (_event(context, m) for m in made)


@contextlib.contextmanager
def _logged(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Have what the library logs in the log of the run within."""

    class ToDagster(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            context.log.log(record.levelno, record.getMessage())

    library, handler = logging.getLogger("plumbline"), ToDagster()
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)


def _one(
    asset: str, key: str, build: Build, summary: Summary, overrides: Overrides | None, after: After | None
) -> _Made:
    started = time.perf_counter()
    name, changed = stage_name(asset, key or None), overrides(key) if overrides else {}
    unfinished = unfinished_mark(workspace_root(), name)
    with recording(workspace_root(), name, changed) as (step, folder):
        build(step, key, folder)
        if after:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            unfinished.touch()
    step.seconds = round(time.perf_counter() - started, 2)
    further = dict(after(step, key)) if after else {}
    unfinished.unlink(missing_ok=True)
    if overrides:
        further["overridden"] = sorted(changed)
    metadata = as_metadata({**further, **summary(step.out)})
    metadata |= {
        "seconds": step.seconds,
        "dvc_md5": step.md5,
        "dvc_stage": step.name,
        **as_metadata({"params": step.params, "inputs": step.inputs}),
        "path": dg.MetadataValue.path(str(step.out)),
    }
    metadata |= _plots(step.out)
    return _Made(key, step, metadata)


def _event(context: dg.AssetExecutionContext, made: _Made) -> dg.AssetMaterialization:
    entry = read_lock(made.step.root)[made.step.name]
    tags = provenance_tags(context.instance, context.assets_def.asset_deps[context.asset_key], entry)
    return dg.AssetMaterialization(context.asset_key, partition=made.key or None, tags=tags, metadata=made.metadata)


def provenance_tags(
    instance: dg.DagsterInstance,
    parents: set[dg.AssetKey],
    entry: Entry,
) -> dict[str, str]:
    """The tags by which Dagster knows what a materialization was made from, read from a dvc.lock entry.

    Without them Dagster falls back to comparing timestamps. For a partitioned parent it compares what came after the
    event pointer, so that is the parent's newest event of any partition.
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


def as_metadata(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Dagster metadata of a summary: numbers (six digits) and words as they are, an address as a link, a list of rows
    as a table, a list of sentences as a Markdown list, the rest as JSON. What is None or empty is left out.
    """
    metadata: dict[str, Any] = {}
    for name, value in summary.items():
        if value is None or value in ({}, []):
            continue
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            metadata[name] = dg.MetadataValue.url(value)
        elif isinstance(value, (bool, int, float, str, dg.MetadataValue)):
            metadata[name] = _shown(value)
        elif isinstance(value, list) and all(isinstance(row, Mapping) for row in value):
            records = [dg.TableRecord({k: _shown(v) for k, v in row.items()}) for row in value[:200]]
            metadata[name] = dg.MetadataValue.table(records)
        elif isinstance(value, list) and all(isinstance(line, str) and " " in line for line in value):
            metadata[name] = dg.MetadataValue.md("\n".join(f"- {line}" for line in value))
        else:
            metadata[name] = dg.MetadataValue.json(value)
    return metadata


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, (bool, int, str, dg.MetadataValue)) else str(value)


def _plots(folder: Path) -> dict[str, Any]:
    plots = {}
    for png in sorted(folder.glob("*.png")):
        if png.stat().st_size < PREVIEW_BYTES:
            data = base64.b64encode(png.read_bytes()).decode()
            plots[png.stem] = dg.MetadataValue.md(f"![{png.stem}](data:image/png;base64,{data})")
    return plots
