"""Register again what the registry lost: every evaluation of the grid has a version, and the champion its alias."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.artifact import read_json
from plumbline.tracking.client import Tracking
from plumbline.tracking.evaluation import log_evaluation
from plumbline.tracking.promotion import LONGEST_REASON, MACHINE, promote, restore_history
from plumbline.tracking.promotion_chain import COPY
from plumbline.tracking.reading import reader
from plumbline.tracking.registry import Registry, open_registry
from plumbline.tracking.store import NoStore, TrackingError, has_tables

if TYPE_CHECKING:
    from plumbline.versioning.lock import Entry


def unregistered(root: Path) -> dict[str, Entry]:
    """The evaluations in dvc.lock of which the registry has no version, by pair of the grid.

    Raises:
        TrackingError: MLflow does not answer.
    """
    from plumbline.params import load_params
    from plumbline.versioning.lock import read_lock, stage_name

    lock = read_lock(root)
    evaluated = {pair: lock.get(stage_name("evaluation", pair)) for pair in load_params(root).pairs()}
    if not any(evaluated.values()):
        return {}
    try:
        registry: Registry | None = open_registry(root, read_only=True)
    except NoStore:
        registry = None
    registered = {(version.pair, version.evaluation) for version in registry.versions()} if registry else set()
    return {pair: entry for pair, entry in evaluated.items() if entry and (pair, entry.md5) not in registered}


def restore(root: Path, stale: Collection[str], announce: Callable[[str], None]) -> int:
    """Register every evaluation that is up to date and has no version; returns their number.

    If one was lost, the runs of the report and of the studies are logged again, too.

    If the registered model was gone as a whole, the history of promotions comes back from promotions.jsonl, and the
    alias goes to its last champion; without that file, to the champion of the last decision.

    Args:
        stale: the stages that are out of date; they register their own output.
        announce: receives a line per version, and a warning if MLflow does not answer.
    """
    try:
        lost = unregistered(root)
        registry = _registry(root) if lost else None
        was_gone = registry is None or registry.model() is None
    except TrackingError as error:
        announce(f"  warning: the registry was not checked: {error}")
        return 0
    restored = 0
    for pair, entry in lost.items():
        out_of_date = {entry.name, f"quantized_model@{pair}"} & set(stale)
        if out_of_date or not (root / "data/evaluation" / pair).is_dir():
            continue
        version = log_evaluation(_step(root, entry), pair, "restored", {})["registered_version"]
        announce(f"▸ {pair} was not in the registry: registered as version {version}")
        restored += 1
    if restored and was_gone and "deployed_model" not in stale:
        _restore_champion(root, announce)
    if restored:
        _log_pages(root, stale)
    return restored


def _log_pages(root: Path, stale: Collection[str]) -> None:
    """Log the report and the studies that are up to date; a store that has their runs stays as it is."""
    from plumbline.tracking.report import log_report
    from plumbline.tracking.study import log_study
    from plumbline.versioning.lock import read_lock
    from plumbline.versioning.status import changed_stages

    out_of_date = {*stale, *changed_stages(root, "study")}
    for name, entry in read_lock(root).items():
        step = _step(root, entry) if entry.asset in ("calibration_report", "study") else None
        if step is None or name in out_of_date or not (step.out / "verdict.json").is_file():
            continue
        if entry.asset == "study":
            log_study(step, name.partition("@")[2], "restored")
        else:
            log_report(step, "restored")


def _restore_champion(root: Path, announce: Callable[[str], None]) -> None:
    registry = Registry(Tracking.of(root))
    try:
        last = restore_history(registry, root)
    except ValueError as error:
        announce(f"  warning: the history of promotions was not restored: {error}")
        return
    if last is not None:
        announce(f"▸ the history of promotions is restored from {COPY}")
        model, why, shown = last.model, f"Restored from {COPY}: {last.why}", f"version {last.version} of then"
    else:
        record = root / "data" / "deployed_model" / "promotion.json"
        decision: dict[str, Any] = read_json(record) if record.is_file() else {"decision": "", "champion_before": None}
        champion = decision if decision["decision"] == "promoted" else decision["champion_before"]
        if champion is None:
            return
        model, why, shown = champion["model"], f"Restored from the last decision: {decision['why']}", champion["pair"]
    try:
        version = registry.of_model(model)
    except TrackingError:
        announce(f"  warning: the champion {shown} is not in this workspace; `plumbline promote` names another")
        return
    promote(registry, root, version.version, MACHINE, why[:LONGEST_REASON])
    announce(f"▸ {version.pair} (version {version.version}) is the champion again")


def _registry(root: Path) -> Registry | None:
    """The registry, read in the fastest way; None: its SQLite file does not exist, or is empty."""
    tracking = Tracking.of(root)
    if tracking.database is not None and not (tracking.database.is_file() and has_tables(tracking.database)):
        return None
    return Registry(tracking, reader(tracking))


def _step(root: Path, entry: Entry) -> Any:
    from plumbline.versioning.recording import Step

    [(out, md5)] = entry.outs.items()
    return Step(entry.name, root, entry.deps, entry.code_version, entry.params, root / out, None, md5)
