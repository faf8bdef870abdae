"""Promotion and rollback of the champion, and their history.

The history is an append-only list of tags on the registered model, `plumbline.promotion.<n>`, each the JSON of a
`Promotion`. An entry is written before the alias moves: if a process is killed in between, the next attempt finds the
same entry at the end of the list and only moves the alias.
"""

from __future__ import annotations

import getpass
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.tracking.registry import ALIAS, Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTED_BY, REASON, ENTRY = "plumbline.promoted_by", "plumbline.reason", "plumbline.promotion."
NUMBERED = re.compile(re.escape(ENTRY) + r"([0-9]+)")
MACHINE = "plumbline"
"""Recorded as `who` when the graph promotes."""
LONGEST_REASON = 2000
Kind = Literal["promoted", "rolled back"]


@dataclass(frozen=True)
class Promotion:
    """A move of the alias."""

    when: str
    """UTC, ISO 8601; empty if it is not on record."""
    version: str
    from_version: str | None
    """The previous champion; None: there was none, or it is not on record."""
    who: str
    why: str
    kind: str
    """`promoted` or `rolled back`."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Promotion:
        """Parse an entry of the list, also one written by another version of Plumbline."""
        texts = {name: str(entry.get(name) or "") for name in ("from_version", "who", "why", "kind")}
        kind, before = texts["kind"] or "promoted", texts["from_version"] or None
        return cls(_iso(entry.get("when")), str(entry["version"]), before, texts["who"], texts["why"], kind)


@dataclass(frozen=True)
class PromotionHistory:
    """Every move of the alias that is on record, oldest first."""

    entries: tuple[Promotion, ...] = ()
    remarks: tuple[str, ...] = ()
    """Entries that cannot be read, contradict each other, or are missing."""
    last: int = 0
    """The highest number on record, unreadable entries included."""


def history(registry: Registry) -> PromotionHistory:
    """Read the moves of the alias from the tags of the registered model and of its versions."""
    model = registry.model()
    tags = [version.tags for version in registry.versions()] if model else []
    return read_history([model.tags, *tags] if model else [])


def read_history(tags: Iterable[Mapping[str, str]]) -> PromotionHistory:
    """Parse the entries, sorted by number, and note what is wrong with them."""
    numbered: dict[int, dict[str, Any]] = {}
    remarks: list[str] = []
    last = 0
    for key, value in (item for mapping in tags for item in mapping.items()):
        match = NUMBERED.fullmatch(key)
        if match is None:
            continue
        last = max(last, int(match[1]))
        try:
            entry = json.loads(value)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or "version" not in entry:
            remarks.append(f"{key} is not a record of a promotion: {str(value)[:60]!r}")
        elif numbered.setdefault(int(match[1]), entry) != entry:
            remarks.append(f"{key} has two different values")
    if numbered and sorted(numbered) != list(range(min(numbered), max(numbered) + 1)):
        remarks.append(f"a promotion was removed: the numbers on record are {sorted(numbered)}")
    entries = tuple(Promotion.of(numbered[number]) for number in sorted(numbered))
    return PromotionHistory(entries, tuple(remarks), last)


def _iso(when: Any) -> str:
    """Convert a recorded time to ISO 8601: text unchanged, or a number of milliseconds or seconds since 1970."""
    if isinstance(when, int | float):
        with suppress(ValueError, OverflowError, OSError):
            moment = datetime.fromtimestamp(when / 1000 if when > 1e11 else when, UTC)
            return moment.isoformat(timespec="seconds")
    return str(when or "")


def promote(registry: Registry, root: Path, version: str, by: str, why: str) -> Promotion | None:
    """Move the alias to a version, and record who and why; returns None if the version has the alias already.

    Raises:
        ValueError: the reason is empty or too long.
        TrackingError: MLflow does not answer, or there is no such version.
    """
    return _move(registry, root, str(version), by, why, "promoted")


def rollback(registry: Registry, root: Path, by: str, why: str) -> Promotion:
    """Move the alias back to the previous champion.

    Raises:
        ValueError: there is no champion, or no previous one.
        TrackingError: MLflow does not answer.
    """
    champion = registry.champion()
    if champion is None:
        raise ValueError(f"{registry.name} has no champion, so there is nothing to roll back")
    entries = history(registry).entries
    promotions = [entry for entry in entries if entry.version == champion.version and entry.kind == "promoted"]
    target = promotions[-1].from_version if promotions else None
    if target is None:
        raise ValueError(f"version {champion.version} ({champion.pair}) is the first champion: none came before it")
    entry = _move(registry, root, target, by, why, "rolled back")
    assert entry is not None, "a version is never its own predecessor"
    return entry


def withdrawn(registry: Registry) -> dict[str, str]:
    """DVC hash of every model that was rolled back and not promoted since -> who rolled it back, and why."""
    models = {version.version: version.model for version in registry.versions()}
    reasons: dict[str, str] = {}
    for entry in history(registry).entries:
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
    registry.version(version)  # raises before anything is written
    with FileLock(locks / "champion.lock"), registry.tracking.client() as client:
        model = registry.model()
        champion = model.aliases.get(ALIAS) if model else None
        if champion == version:
            return None
        entry = _record(registry, client, Promotion(_now(), version, champion, by, why, kind))
        client.set_model_version_tag(registry.name, version, PROMOTED_BY, entry.who)
        client.set_model_version_tag(registry.name, version, REASON, entry.why)
        client.set_registered_model_alias(registry.name, ALIAS, version)
    return entry


def _record(registry: Registry, client: MlflowClient, entry: Promotion) -> Promotion:
    """Append an entry and return it; if a killed process wrote the same entry last, return that one."""
    recorded = history(registry)
    if recorded.entries:
        last = recorded.entries[-1]
        if (last.version, last.from_version, last.kind) == (entry.version, entry.from_version, entry.kind):
            return last
    text = json.dumps(asdict(entry), sort_keys=True, ensure_ascii=False)
    client.set_registered_model_tag(registry.name, f"{ENTRY}{recorded.last + 1}", text)
    return entry


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
