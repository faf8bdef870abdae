"""Promotion and rollback of the champion, and their history.

The history is an append-only list of tags on the registered model, `plumbline.promotion.<n>`, each the JSON of a
`Promotion`. It lists what happened: the tag `plumbline.promoting` holds an entry and its number until the alias has
moved. If a process is killed in between, the alias tells whether the entry happened. The entries form
a hash chain (promotion_chain.py).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.tracking.model_artifact import attach_model
from plumbline.tracking.promotion_chain import broken, digest_before, read_copy, write_copy
from plumbline.tracking.promotion_entry import Kind
from plumbline.tracking.promotion_entry import Promotion as Promotion
from plumbline.tracking.registry import ALIAS, Registry
from plumbline.tracking.renumbered import LOST, renumbered
from plumbline.tracking.store import mlflow_error
from plumbline.tracking.text import MODELS, with_history

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PROMOTED_BY, REASON, ENTRY = "plumbline.promoted_by", "plumbline.reason", "plumbline.promotion."
PENDING = "plumbline.promoting"
NUMBERED = re.compile(re.escape(ENTRY) + r"([0-9]+)")
MACHINE = "plumbline"
"""Recorded as `who` when the graph promotes."""
LONGEST_REASON = 2000


@dataclass(frozen=True)
class PromotionHistory:
    """Every move of the alias that is on record, oldest first."""

    entries: tuple[Promotion, ...] = ()
    remarks: tuple[str, ...] = ()
    """Entries that cannot be read, contradict each other, or are missing."""
    last: int = 0
    """The highest number on record, unreadable entries included."""
    pending: Promotion | None = None
    """A move whose process was killed before it recorded it; part of `entries` if the alias shows that it happened."""
    numbered: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """The readable entries as they are stored, by number."""


def history(registry: Registry) -> PromotionHistory:
    """Read the moves of the alias from the tags of the registered model and of its versions."""
    model = registry.model()
    tags = [version.tags for version in registry.versions()] if model else []
    return read_history([model.tags, *tags], model.aliases.get(ALIAS, "")) if model else PromotionHistory()


def read_history(tags: Iterable[Mapping[str, str]], champion: str = "") -> PromotionHistory:
    """Parse the entries, sorted by number, and note what is wrong with them.

    Args:
        tags: of the registered model and of its versions.
        champion: the version that the alias names.
    """
    numbered: dict[int, dict[str, Any]] = {}
    remarks: list[str] = []
    last = 0
    started = ""
    for key, value in (item for mapping in tags for item in mapping.items()):
        started = value if key == PENDING else started
        match = NUMBERED.fullmatch(key)
        if match is None:
            continue
        last = max(last, int(match[1]))
        entry = _parsed(value)
        if entry is None:
            remarks.append(f"{key} is not a record of a promotion: {str(value)[:60]!r}")
        elif numbered.setdefault(int(match[1]), entry) != entry:
            remarks.append(f"{key} has two different values")
    if numbered and sorted(numbered) != list(range(min(numbered), max(numbered) + 1)):
        remarks.append(f"a promotion was removed: the numbers on record are {sorted(numbered)}")
    entries = [Promotion.of(numbered[number]) for number in sorted(numbered)]
    remarks += broken(numbered)
    pending = _pending(started, last)
    if pending is not None and pending.version == champion:
        entries.append(pending)
    elif pending is not None:
        remarks.append(f"a promotion of version {pending.version} was interrupted and did not happen")
    return PromotionHistory(tuple(entries), tuple(remarks), last, pending, numbered)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and "version" in entry else None


def _pending(started: str, last: int) -> Promotion | None:
    """The entry of a move that was not recorded; None: there is none, or the list has it already."""
    entry = _parsed(started)
    return Promotion.of(entry) if entry is not None and entry.get("number") == last + 1 else None


def promote(registry: Registry, root: Path, version: str, by: str, why: str) -> Promotion | None:
    """Move the alias to a version, and record who and why; returns None if the version has the alias already.

    Raises:
        ValueError: the reason is empty or too long.
        TrackingError: MLflow does not answer, or there is no such version.
    """
    return _move(registry, root, str(version), by, why, "promoted")


def rollback(registry: Registry, root: Path, by: str, why: str) -> Promotion:
    """Move the alias back to the latest earlier champion that is still registered.

    Raises:
        ValueError: there was no champion, or no earlier one is left.
        TrackingError: MLflow does not answer.
    """
    champion, versions = registry.champion(), registry.versions()
    registered = {version.version for version in versions}
    entries = renumbered(history(registry).entries, versions)
    reigns = _reigns(entries, champion.version if champion else "")
    if not reigns:
        raise ValueError(f"{registry.name} has no champion, so there is nothing to roll back")
    earlier = [version for version in reigns[:-1] if version != reigns[-1]]
    target = next((version for version in reversed(earlier) if version in registered), None)
    if target is None:
        last, *gone_before = (version.removeprefix(LOST) for version in (reigns[-1], *earlier))
        shown = f"version {last}" + (f" ({champion.pair})" if champion else ", which was deleted,")
        gone = f"; the earlier ones were deleted: {', '.join(dict.fromkeys(gone_before))}" if earlier else ""
        raise ValueError(f"{shown} is the first champion: none came before it{gone}")
    entry = _move(registry, root, target, by, why, "rolled back")
    assert entry is not None, "a version is never its own predecessor"
    return entry


def restore_history(registry: Registry, root: Path) -> Promotion | None:
    """Bring the workspace's copy of the history back into a registry that has none; returns its newest entry.

    Raises:
        ValueError: the copy cannot be read.
    """
    copy = read_copy(root, registry.name)
    if not copy or history(registry).numbered:
        return None
    with registry.tracking.client() as client:
        for number in sorted(copy):
            text = json.dumps(copy[number], sort_keys=True, ensure_ascii=False)
            client.set_registered_model_tag(registry.name, f"{ENTRY}{number}", text)
    return Promotion.of(copy[max(copy)])


def _reigns(entries: Iterable[Promotion], champion: str) -> list[str]:
    """The versions that were champions in turn, without those that were rolled back; the last one is `champion`.

    Args:
        champion: the version that the alias names; empty: the last one was deleted, and its alias with it.
    """
    reigns: list[str] = []
    for entry in entries:
        if entry.kind != "promoted" and entry.version in reigns:
            while reigns[-1] != entry.version:
                reigns.pop()
            continue
        if entry.from_version and reigns[-1:] != [entry.from_version]:
            reigns.append(entry.from_version)  # its own promotion is not on record
        reigns.append(entry.version)
    if champion and reigns[-1:] != [champion]:
        reigns.append(champion)
    return reigns


def withdrawn(registry: Registry) -> dict[str, str]:
    """DVC hash of every model that was rolled back and not promoted since -> who rolled it back, and why."""
    versions = registry.versions()
    models = {version.version: version.model for version in versions}
    reasons: dict[str, str] = {}
    for entry in renumbered(history(registry).entries, versions):
        if entry.kind == "promoted":
            reasons.pop(models.get(entry.version, ""), None)
        elif entry.from_version is not None:
            reasons[models.get(entry.from_version, "")] = f"{entry.who}: {entry.why}"
    return reasons


def user_name(root: Path) -> str:
    """The name of the user: git's `user.name` in the workspace, else the account."""
    try:
        process = subprocess.run(["git", "config", "user.name"], cwd=root, capture_output=True, text=True, check=False)
        name = process.stdout.strip()
    except OSError:
        name = ""
    try:
        return name or getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _move(registry: Registry, root: Path, version: str, by: str, why: str, kind: Kind) -> Promotion | None:
    from filelock import FileLock

    why = " ".join(why.split())
    if not why or len(why) > LONGEST_REASON:
        raise ValueError(f"--why: expected 1 to {LONGEST_REASON} characters, found {len(why)}; say why")
    locks = root / ".plumbline" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    target = registry.version(version)  # this and the next line raise before anything is written
    read_copy(root, registry.name)
    with FileLock(locks / "champion.lock"), registry.tracking.client() as client:
        restore_history(registry, root)  # a new registry goes on where the lost one ended
        model = registry.model()
        champion = model.aliases.get(ALIAS) if model else None
        recorded = history(registry)
        pending, number = recorded.pending, recorded.last + 1
        if pending is not None and pending.version == champion:
            _record(registry, root, client, pending, number)  # it happened, and its process was killed before this
            number += 1
        if champion == version:
            return None
        entry = Promotion(_now(), version, champion, by, why, kind, target.model)
        if pending is not None and _move_of(pending) == _move_of(entry):
            entry = pending  # the same move, begun and killed before
        if problem := attach_model(registry, root, target):
            log.warning(problem)  # the alias moves all the same: a rollback must not wait for files
        client.set_registered_model_tag(registry.name, PENDING, _text(entry, number=number))
        client.set_registered_model_alias(registry.name, ALIAS, version)
        _record(registry, root, client, entry, number)
    return entry


def _record(registry: Registry, root: Path, client: MlflowClient, entry: Promotion, number: int) -> None:
    """Append a move that happened to the list, and to the workspace's copy."""
    recorded = history(registry).numbered
    content = {**asdict(entry), "previous": digest_before(recorded, number)}
    client.set_model_version_tag(registry.name, entry.version, PROMOTED_BY, entry.who)
    client.set_model_version_tag(registry.name, entry.version, REASON, entry.why)
    client.set_registered_model_tag(
        registry.name, f"{ENTRY}{number}", json.dumps(content, sort_keys=True, ensure_ascii=False)
    )
    write_copy(root, registry.name, {**recorded, number: content})
    client.delete_registered_model_tag(registry.name, PENDING)
    _describe(registry, client, entry)


def _describe(registry: Registry, client: MlflowClient, entry: Promotion) -> None:
    """Write the history where people look for it: on the pages of the model and of both versions of a move."""
    versions = registry.versions()
    entries = renumbered(history(registry).entries, versions)
    numbers = {version.version for version in versions} & {entry.version, entry.from_version}
    with contextlib.suppress(mlflow_error()):  # the move is on record; a description can be written again
        for number in sorted(numbers):
            text = client.get_model_version(registry.name, number).description or ""
            client.update_model_version(registry.name, number, with_history(text, number, entries))
        text = client.get_registered_model(registry.name).description or MODELS
        client.update_registered_model(registry.name, with_history(text, "", entries))


def _move_of(entry: Promotion) -> tuple[str, str | None, str]:
    return entry.version, entry.from_version, entry.kind


def _text(entry: Promotion, **more: Any) -> str:
    return json.dumps({**asdict(entry), **more}, sort_keys=True, ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
