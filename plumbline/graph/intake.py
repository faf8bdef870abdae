"""Intake: updates intake.yaml from the inbox and the hub before a run reads the corpus.

`intake.yaml` lists what the corpus consists of. A run is needed if it differs from what the last run read, according to
dvc.lock. The sensors therefore hold no state that could be lost: a daemon may be killed, restarted, or run twice. The
state file `.plumbline/intake.json`, under a lock, only stores since when each file has been unchanged and which process
requested the last run.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from plumbline.artifact import replace_text
from plumbline.params import load_params
from plumbline.raw_corpus.intake import INTAKE, Intake, IntakeChanges, read_intake, take_in, write_intake
from plumbline.raw_corpus.params import HuggingFace
from plumbline.raw_corpus.stores import Seen, store_of
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.lock import read_lock

STATE = ".plumbline/intake.json"
SETTLED = 4.0
"""Seconds for which a file must stay unchanged before it counts as complete."""
PATIENCE = 60.0
"""The same for a file that ends in the middle of a record."""
CLAIM = 60.0
"""Seconds after which a run that another daemon requested, and that was never launched, is requested again."""
LAUNCH = 15.0
"""The same where this process requested it: two daemons may ask one code location, and each needs seconds to launch."""


@dataclass(frozen=True)
class Request:
    """A run that should be launched; requests for the same content have the same key."""

    key: str
    changes: dict[str, Any]


@contextlib.contextmanager
def _state(root: Path, alone: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield the content of the state file under its lock; write it back at the end.

    Args:
        alone: to write intake.yaml, seconds to wait for a step that reads it (-1: no limit). None: intake.yaml is not
            written.

    Raises:
        filelock.Timeout: the step takes longer.
    """
    from filelock import FileLock

    path = root / STATE
    locks = path.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    reader = contextlib.nullcontext() if alone is None else FileLock(locks / "raw_corpus.lock", timeout=alone)
    with FileLock(locks / "intake.lock"), reader:
        state = _last_state(root)
        yield state
        replace_text(path, json.dumps(state))


def _last_state(root: Path) -> dict[str, Any]:
    """The content of the state file, which is replaced as a whole; empty if there is none, or a corrupt one."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((root / STATE).read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    return {}


def take_in_now(root: Path) -> IntakeChanges:
    """Take in the inbox without waiting for files to settle; a file that changes while it is read is skipped."""
    with _state(root, alone=-1) as state:
        return _take_in(root, state, lambda seen, _: True, time.time())


def take_in_settled(root: Path, now: Callable[[], float] = time.time) -> IntakeChanges:
    """Take in the files that have been unchanged long enough.

    Raises:
        filelock.Timeout: a run is reading the corpus.
    """

    def settled(seen: Seen, seconds: float) -> bool:
        return seconds >= (PATIENCE if seen.cut_off else SETTLED)

    with _state(root, alone=0) as state:
        return _take_in(root, state, settled, now())


def _take_in(root: Path, state: dict[str, Any], settled: Callable[[Seen, float], bool], now: float) -> IntakeChanges:
    params = load_params(root).corpus
    store = store_of(params.inbox, root, params.max_file_bytes)
    path = root / INTAKE
    before = read_intake(path)
    listing = store.look()
    entries: dict[str, dict[str, Any]] = {}
    ready: dict[str, str | None] = {}
    for name, seen in listing.items():
        previous = state.get("seen", {}).get(name, {})
        same = previous.get("stamp") == seen.stamp
        entries[name] = {"stamp": seen.stamp, "since": previous["since"] if same else now}
        if same and previous.get("sha256") and store.place(previous["sha256"]).is_file():
            entries[name]["sha256"] = ready[name] = previous["sha256"]
        elif settled(seen, now - entries[name]["since"]):
            ready[name] = None
    after, changes, contents = take_in(before, store, listing, ready)
    for name, content in contents.items():
        entries[name]["sha256"] = content
    state["seen"] = entries
    if after != before or not path.is_file():
        write_intake(path, after)
    if changes:
        state["changes"] = changes.as_dict()
    in_use = set(contents.values()) | {taken.sha256 or "" for taken in after.files.values()}
    store.forget(in_use)
    return changes


def follow(root: Path, newest: Callable[[str, str], str]) -> dict[str, str]:
    """Record the newest commit of every hub dataset that follows a branch; returns the new commits by source.

    Args:
        newest: (dataset, branch) -> commit.
    """
    sources = load_params(root).corpus.in_order()
    followed = {
        name: source
        for name, source in sources.items()
        if isinstance(source, HuggingFace) and source.follow is not None
    }
    commits = {name: newest(source.name, str(source.follow)) for name, source in followed.items()}
    with _state(root, alone=0) as state:
        before = read_intake(root / INTAKE)
        current = {name: before.revisions.get(name, followed[name].revision) for name in commits}
        new = {name: commit for name, commit in commits.items() if commit != current[name]}
        if new:
            write_intake(root / INTAKE, replace(before, revisions={**before.revisions, **new}))
            state["changes"] = {"revisions": [f"{name}: {commit}" for name, commit in new.items()]}
    return new


def hub_commit(dataset: str, branch: str, endpoint: str | None = None) -> str:
    """The newest commit of a branch of a dataset on the hub.

    Raises:
        OSError, httpx.HTTPError: the hub does not answer, or has no such dataset.
    """
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).dataset_info(dataset, revision=branch, timeout=20)
    return str(info.sha)


def unread(root: Path) -> bool:
    """Whether intake.yaml differs from what the last run read."""
    path = root / INTAKE
    entry = read_lock(root).get("raw_corpus")
    if entry is None:
        intake = read_intake(path)
        return bool(intake.files or intake.revisions)
    return not path.is_file() or dvc_digest(path) != entry.deps.get(INTAKE)


def request(root: Path, launched: Callable[[str], bool], now: Callable[[], float] = time.time) -> Request | None:
    """Return the run that reads new intake; None if the last run read it, or if the run was requested already.

    Args:
        launched: whether a run with this key exists, in any state: a failed run is not retried automatically.
    """
    with _state(root) as state:
        if not unread(root):
            return None
        path = root / INTAKE
        key = f"intake-{dvc_digest(path)[:16]}-{path.stat().st_mtime_ns}"
        if launched(key):
            return None
        claim = state.get("claim", {})
        pid, age = int(claim.get("pid", 0)), now() - float(claim.get("when", 0))
        patience = LAUNCH if pid == os.getpid() else CLAIM if psutil.pid_exists(pid) else 0.0
        if claim.get("key") == key and age < patience:
            return None  # a daemon is about to launch it
        state["claim"] = {"key": key, "pid": os.getpid(), "when": now()}
        return Request(key, state.get("changes", {}))


def waiting(root: Path) -> IntakeChanges:
    """Return what the next intake would change, without changing it; unchanged files are not read."""
    params = load_params(root).corpus
    store = store_of(params.inbox, root, params.max_file_bytes)
    before: Intake = read_intake(root / INTAKE)
    read = {name: entry for name, entry in _last_state(root).get("seen", {}).items() if entry.get("sha256")}
    listing = store.look()
    new = [n for n, seen in listing.items() if not seen.problem and read.get(n, {}).get("stamp") != seen.stamp]
    removed = [name for name, taken in before.files.items() if name not in listing and not taken.refused]
    return IntakeChanges(waiting=tuple(new), removed=tuple(removed))
