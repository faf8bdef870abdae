"""`plumbline run`: bring every artifact up to date, in one process that loads nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.graph.intake import take_in_now
from plumbline.raw_corpus.intake import INTAKE
from plumbline.versioning.lock import stage_name
from plumbline.versioning.pipeline import on_request
from plumbline.versioning.recording import refresh_code_versions, sweep
from plumbline.versioning.status import changed_stages

if TYPE_CHECKING:
    import dagster as dg

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


class RunFailed(RuntimeError):
    """A step failed; the message is its error."""


def ranges(keys: Sequence[str], wanted: set[str]) -> Iterator[list[str]]:
    """The wanted keys as runs of neighbours in `keys`: Dagster runs a range of partitions at once."""
    for is_wanted, run in groupby(keys, key=wanted.__contains__):
        if is_wanted:
            yield list(run)


def run_graph(root: Path, only: Sequence[str] = (), announce: Callable[[str], None] = print) -> int:
    """Materialize what is missing or out of date, upstream first; returns the number of steps that ran.

    Whether a step is out of date is asked anew when its turn comes: an upstream step that ran again and made the same
    bytes leaves what is downstream alone.

    Args:
        only: these assets alone; none named: all but those that run on request.

    Raises:
        RunFailed: a step failed; what was finished before stays.
    """
    sweep(root)
    refresh_code_versions(root)
    if not only or "raw_corpus" in only or not (root / INTAKE).is_file():
        take_in_now(root)
    left_alone = on_request(root) - set(only)
    changed = changed_stages(root, *only)
    if not changed:
        return 0

    import dagster as dg

    from plumbline.graph.definitions import checks_of, stage_assets
    from plumbline.graph.instance import QUIET, instance

    steps = 0
    with instance() as history:
        for asset in stage_assets(root):
            name = asset.key.to_user_string()
            if name in left_alone or (only and name not in only):
                continue
            if steps:
                changed = changed_stages(root, name)
            keys = list(asset.partitions_def.get_partition_keys()) if asset.partitions_def else [""]
            wanted = {key for key in keys if stage_name(name, key or None) in changed}
            for run in ranges(keys, wanted):
                what = f"{name} {run[0]}" + (f" … {run[-1]} ({len(run)})" if len(run) > 1 else "")
                announce(f"▸ {what}".rstrip())
                started = time.perf_counter()
                tags = {"front_door": "plumbline run"}
                if asset.partitions_def:
                    tags |= {RANGE_START: run[0], RANGE_END: run[-1]}
                result = dg.materialize(
                    [asset, *checks_of(root, asset)],
                    instance=history,
                    tags=tags,
                    run_config=QUIET,
                    raise_on_error=False,
                )
                if not result.success:
                    raise RunFailed(failure(result))
                for warning in failed_checks(result):
                    announce(f"  warning: {warning}")
                steps += len(run)
                announce(f"  {time.perf_counter() - started:.1f} s")
    return steps


def with_upstream(root: Path, asset: str) -> list[str]:
    """The names of an asset and of all that it is made from, upstream first."""
    import dagster as dg

    from plumbline.graph.definitions import load_definitions, stage_assets

    wanted = dg.AssetSelection.assets(asset).upstream().resolve(load_definitions(root).resolve_asset_graph())
    return [made.key.to_user_string() for made in stage_assets(root) if made.key in wanted]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What went wrong in a run that did not succeed: the error of the step, or the sentences of the failed checks."""
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:  # the user's error, not Dagster's wrapping of it
            error = error.cause
        if error is not None:
            return f"{event.step_key}: {error.message.strip()}"
    return "; ".join(failed_checks(result)) or "the run failed; see the Dagster UI"


def failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    """The sentences of the checks that did not pass; those of a run that succeeded are warnings."""
    return [f"check {e.check_name}: {e.description}" for e in result.get_asset_check_evaluations() if not e.passed]
