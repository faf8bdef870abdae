"""DVC's records of every run: the current dvc.lock, DVC's run cache, and dvc.lock in git's history."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from plumbline.versioning.cache import run_records
from plumbline.versioning.lock import MALFORMED, Entry, parse_lock, parse_run, read_lock

ARTIFACT = re.compile(r"data/[a-z_]+(/[a-z0-9][a-z0-9_-]*)?")
"""Path of an artifact in a workspace. Records that name any other path are ignored."""


class History:
    """Runs by the DVC hash of their outputs. The records are not trusted: callers check contents by digest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def maker(self, md5: str, path: str = "") -> Entry | None:
        """The recorded run that produced an output with this hash, at this path if one is given; None without one."""
        for known in self._sources():
            entries = known.get(md5, [])
            for entry in entries:
                if not path or path in entry.outs:
                    return entry
        return None

    def witnesses(self, path: str) -> list[Entry]:
        """The runs of the output at this path that DVC's run cache and the current git commit record.

        dvc.lock itself is left out: it is what they bear witness to.
        """
        known = [entry for source in (self._runs, self._head) for entries in source.values() for entry in entries]
        return [entry for entry in known if path in entry.outs]

    def committed(self, entry: Entry) -> bool:
        """Whether the dvc.lock of any commit has exactly this entry."""
        return any(entry in self._commits.get(md5, []) for md5 in entry.outs.values())

    @property
    def has_runs(self) -> bool:
        """Whether DVC's run cache or the current git commit records any run."""
        return bool(self._runs or self._head)

    def makers(self, md5: str, path: str) -> list[Entry]:
        """Every recorded run that produced an output with this hash at this path."""
        sources = (self._lock, self._runs, self._head)
        entries = [entry for source in sources for entry in source.get(md5, []) if path in entry.outs]
        return entries or [entry for entry in self._commits.get(md5, []) if path in entry.outs]

    def readers(self, md5: str, asset: str) -> list[Entry]:
        """Every recorded run of an asset that read an artifact with this hash."""
        known = [e for source in (self._lock, self._runs, self._head) for entries in source.values() for e in entries]
        return [entry for entry in known if entry.asset == asset and md5 in entry.deps.values()]

    def ancestry(self, md5: str, path: str = "") -> dict[str, Entry]:
        """The runs upstream of an output, and its own, by the path of their output; upstream first.

        Unrecorded runs are left out. The hashes of their outputs are in the `deps` of the runs that read them.
        """
        runs: dict[str, Entry] = {}

        def walk(md5: str, path: str) -> None:
            entry = self.maker(md5, path)
            outs = entry.outs.items() if entry else ()
            place = next((out for out, holds in outs if holds == md5 and ARTIFACT.fullmatch(out)), "")
            if entry is None or not place or place in runs:
                return
            runs[place] = entry  # before its inputs: a forged entry may name itself
            for dep, holds in sorted(entry.deps.items()):
                if ARTIFACT.fullmatch(dep):
                    walk(holds, dep)
            runs[place] = runs.pop(place)

        walk(md5, path)
        return runs

    def _sources(self) -> Iterator[dict[str, list[Entry]]]:
        """Runs by output hash, cheapest source first. A later source is read only if the earlier ones lack the hash."""
        yield self._lock
        yield self._runs
        yield self._commits

    @cached_property
    def _lock(self) -> dict[str, list[Entry]]:
        try:
            return _by_output(read_lock(self.root).values())
        except ValueError:
            return {}

    @cached_property
    def _runs(self) -> dict[str, list[Entry]]:
        return _by_output(entry for path in sorted(run_records(self.root)) if (entry := _read_run(path)))

    @cached_property
    def _head(self) -> dict[str, list[Entry]]:
        return _by_output(_read_commit(self.root, "HEAD"))

    @cached_property
    def _commits(self) -> dict[str, list[Entry]]:
        by_output: dict[str, list[Entry]] = {}
        for commit in _git(self.root, "log", "--all", "--format=%H", "--", "dvc.lock").split():
            for md5, entries in _by_output(_read_commit(self.root, commit)).items():
                by_output.setdefault(md5, []).extend(entries)
        return by_output

    def commit_of(self, md5: str) -> str:
        """The newest commit whose dvc.lock names this hash; empty without one or without git."""
        commits = _git(self.root, "log", "--all", "--format=%H", "-S", md5, "--", "dvc.lock").split()
        for commit in commits:
            if md5 in _git(self.root, "show", f"{commit}:./dvc.lock"):
                return commit
        return ""

    def holds(self, commit: str, path: str) -> bool:
        """Whether a commit has a file or folder at this path of the workspace."""
        return bool(_git(self.root, "ls-tree", commit, "--", path))


def _by_output(entries: Any) -> dict[str, list[Entry]]:
    by_output: dict[str, list[Entry]] = {}
    for entry in entries:
        for md5 in entry.outs.values():
            by_output.setdefault(md5, []).append(entry)
    return by_output


def _read_run(path: Path) -> Entry | None:
    try:
        return parse_run(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED):
        return None  # incomplete, or not written by DVC


def _read_commit(root: Path, commit: str) -> list[Entry]:
    try:
        return list(parse_lock(_git(root, "show", f"{commit}:./dvc.lock")).values())
    except MALFORMED:
        return []


def _git(root: Path, *arguments: str) -> str:
    """Git's output; empty without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
