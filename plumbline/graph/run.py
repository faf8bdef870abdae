"""`plumbline run`: bring every artifact up to date, in one process that loads each model once."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.collector import collector_paused, resume_collector
from plumbline.execution.ray_cluster import kept
from plumbline.graph.declared import declare
from plumbline.graph.in_process import run_asset
from plumbline.graph.intake import take_in_now
from plumbline.graph.pool import HEAVY, wait_for_others
from plumbline.graph.preflight import TRACKED, require_ready, require_writable, services
from plumbline.markdown import plain
from plumbline.params import load_params
from plumbline.raw_corpus.intake import INTAKE
from plumbline.tracking.address import tracking_address
from plumbline.tracking.restoration import restore
from plumbline.tracking.store import load_library
from plumbline.versioning.dvc_locks import remove_damaged_locks
from plumbline.versioning.facts import STAGES
from plumbline.versioning.file_system import lock_warnings
from plumbline.versioning.lock import stage_name
from plumbline.versioning.pipeline import on_request, stage_names
from plumbline.versioning.recording import refresh_facts
from plumbline.versioning.scratch import sweep
from plumbline.versioning.status import changed_stages

if TYPE_CHECKING:
    import dagster as dg

    from plumbline.graph.forecast import Forecast

INTERRUPTS = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")


class RunFailed(RuntimeError):
    """A step failed; the message is its error."""


class Interrupted(RunFailed):
    """Somebody stopped the run."""


def ranges(keys: Sequence[str], wanted: set[str]) -> Iterator[list[str]]:
    """Group the wanted keys into ranges of neighbours in `keys`, which Dagster runs at once."""
    for is_wanted, run in groupby(keys, key=wanted.__contains__):
        if is_wanted:
            yield list(run)


def run_graph(
    root: Path,
    only: Sequence[str] = (),
    announce: Callable[[str], None] = print,
    expected: Forecast | None = None,
) -> int:
    """Materialize what is missing or out of date, upstream first; returns the number of steps that ran.

    Evaluations that are up to date, but whose version the registry lost, are registered again.

    Whether a step is out of date is checked again before it runs: if an upstream step reproduced the same bytes,
    downstream steps are skipped.

    Args:
        only: the assets to run; empty: all except those that run on request.
        expected: what the run was forecast to do; then every step says how much is left.

    Raises:
        ValueError: `only` names no asset; or something is known to make a step fail, see preflight.py.
        RunFailed: a step failed, or was interrupted; the steps that finished before are kept.
    """
    with collector_paused():
        return _run_graph(root, only, announce, expected)


def _run_graph(root: Path, only: Sequence[str], announce: Callable[[str], None], expected: Forecast | None) -> int:
    """`run_graph`, to be called while the garbage collector is paused: it goes on before the first step."""
    changed = _made_ready(root, only, announce)
    restored = restore(root, changed, announce) if not only or {"evaluation", "deployed_model"} & set(only) else 0
    if not changed:
        return restored

    from plumbline.graph.definitions import stage_assets
    from plumbline.graph.instance import instance
    from plumbline.graph.progress import RunProgress
    from plumbline.graph.shared_steps import is_shared
    from plumbline.graph.step import FRONT_DOOR

    skipped = on_request(root) - set(only)
    steps, progress, execution = restored, RunProgress(root, expected), load_params(root).execution
    with instance() as history, kept():
        assets = stage_assets(root)
        if any(name.split("@")[0] in TRACKED for name in changed):
            load_library()
        resume_collector()
        for asset in assets:
            name = asset.key.to_user_string()
            if name in skipped or (only and name not in only):
                continue
            if steps:
                changed = changed_stages(root, name)
            keys = list(asset.partitions_def.get_partition_keys()) if asset.partitions_def else [""]
            wanted = {key for key in keys if stage_name(name, key or None) in changed}
            for run in ranges(keys, wanted):
                shown = f"{name} {run[0]}".rstrip() + (f" … {run[-1]} ({len(run)})" if len(run) > 1 else "")
                workers = f", shared out to {execution}" if is_shared(name, len(run), execution) else ""
                announce(f"▸ {progress.before(name, len(run))}{shown}{workers}")
                if HEAVY in getattr(asset.node_def, "pools", ()):
                    wait_for_others(history, shown, announce)
                started = time.perf_counter()
                with _interruptible(shown):
                    result = run_asset(root, asset, history, {FRONT_DOOR: "plumbline run"}, [key for key in run if key])
                if was_interrupted(result):
                    raise Interrupted(stopped(shown))
                if not result.success:
                    raise RunFailed(failure(result))
                for warning in failed_checks(result):
                    announce(f"  warning: {warning}")
                steps += len(run)
                seconds = time.perf_counter() - started
                progress.after(name, len(run), seconds)
                announce(f"  {seconds:.1f} s{where(result)}")
            progress.skipped(name)
    return steps


def _made_ready(root: Path, only: Sequence[str], announce: Callable[[str], None]) -> dict[str, list[str]]:
    """Bring files and intake up to date, check what can be known before the first step, and return what is out of date.

    Raises as `run_graph`.
    """
    require_assets(root, only)
    require_writable(root)
    with contextlib.suppress(ValueError):  # a wrong address is said with all other problems
        for warning in lock_warnings(root, tracking_address(root).uri or ""):
            announce(f"warning: {warning}")
    for change in declare(root):
        announce(change)
    sweep(root)
    remove_damaged_locks(root)
    refresh_facts(root)
    if not only or "raw_corpus" in only or not (root / INTAKE).is_file():
        if any(services(load_params(root), root, ["raw_corpus"])):  # listed together with all that is wrong
            require_ready(root, {"raw_corpus", *changed_stages(root, *only)})
        take_in_now(root)
    changed = changed_stages(root, *only)
    if changed:
        require_ready(root, changed)
    return changed


def require_assets(root: Path, names: Iterable[str]) -> None:
    """Refuse names that no asset of the graph has.

    Raises:
        ValueError: names the one that is closest.
    """
    known = [name for name in stage_names(root) if name not in STAGES]
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"there is no asset {name!r}; {hint}Assets: {', '.join(known)}")


@contextlib.contextmanager
def _interruptible(step: str) -> Iterator[None]:
    import dagster as dg

    try:
        yield
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
        raise Interrupted(stopped(step)) from error


def was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether a run ended because somebody stopped it, not because a step failed."""
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    while any(errors):
        if any(error and error.cls_name in INTERRUPTS for error in errors):
            return True
        errors = [error.cause if error else None for error in errors]
    return False


def stopped(step: str) -> str:
    """What to tell somebody who stopped a run in this step."""
    return (
        f"stopped in {step}. Nothing was lost: every finished step is recorded, and the last good version of the "
        "others is in place. `plumbline run` continues with this step"
    )


def where(result: dg.ExecuteInProcessResult) -> str:
    """Which machines computed the steps of a run, such as `: 9 on a, 7 on b`; empty if this process did."""
    from plumbline.graph.shared_steps import COMPUTED_ON, shown

    metadata = [event.materialization.metadata for event in result.get_asset_materialization_events()]
    hosts = Counter(str(entry[COMPUTED_ON].value) for entry in metadata if COMPUTED_ON in entry)
    return f": {shown(hosts)}" if hosts else ""


def with_upstream(root: Path, asset: str) -> list[str]:
    """The names of an asset and its upstream assets, upstream first."""
    import dagster as dg

    from plumbline.graph.definitions import load_definitions, stage_assets

    wanted = dg.AssetSelection.assets(asset).upstream().resolve(load_definitions(root).resolve_asset_graph())
    return [asset_def.key.to_user_string() for asset_def in stage_assets(root) if asset_def.key in wanted]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The error of a failed run: the sentence or error of the failed step, or the descriptions of the failed checks."""
    for event in result.get_step_failure_events():
        expected = event.step_failure_data.user_failure_data
        if expected is not None:
            return f"{event.step_key}: {expected.description}"
        error = event.step_failure_data.error
        while error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster"):
            error = error.cause  # ours, not Dagster's wrapper; its own cause is what it explains
        if error is not None:
            return f"{event.step_key}: {error.message.strip()}"
    return "; ".join(failed_checks(result)) or "the run failed; see the Dagster UI"


def failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    """Descriptions of the failed checks; in a run that succeeded they are warnings."""
    return [
        f"check {e.check_name}: {plain(e.description or '')}"
        for e in result.get_asset_check_evaluations()
        if not e.passed
    ]
