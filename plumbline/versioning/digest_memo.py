"""DVC's hashes of paths in a workspace, cached while names, sizes, modification times and inodes stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from plumbline.artifact import replace_text
from plumbline.versioning.pipeline import pipeline

FILE = ".plumbline/digests.json"
IGNORE = ".dvcignore"


class DigestMemo:
    """Cached hashes of what the stages of dvc.yaml read and write. DVC computes those that are not in the cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):  # absent or corrupt: ask DVC
            content = json.loads((root / FILE).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                self._known = {path: known for path, known in content.items() if _is_known(known)}
        self._now: dict[str, str | None] = {}
        self._must_save = False

    def get(self, path: str) -> str | None:
        """DVC's hash of a path that a stage of dvc.yaml names; None if the path is absent.

        Each path is examined once per memo. Create another memo to see later changes.
        """
        if path not in self._now:
            self._now[path] = self._look(path) if (self.root / path).exists() else None
        return self._now[path]

    def _look(self, path: str) -> str | None:
        signature = _signature(self.root, path)
        known = self._known.get(path)
        if known and known[0] == signature:
            return known[1]
        md5 = pipeline(self.root).digest(path)
        if md5 is not None:
            self._known[path] = [signature, md5]
            self._must_save = True
        return md5

    def save(self) -> None:
        """Write the new hashes to the workspace."""
        if self._must_save:
            with contextlib.suppress(OSError):  # a read-only workspace
                replace_text(self.root / FILE, json.dumps(self._known))
            self._must_save = False


def _is_known(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _signature(root: Path, path: str) -> str:
    """Digest of the names, sizes, modification times and inodes of a file, or of all files in a folder.

    It covers the .dvcignore files of the folders above, too.
    """
    place = root / path
    above = [root / Path(path).parent, *(root / Path(path).parent).parents]
    ignores = [folder / IGNORE for folder in above if folder.is_relative_to(root)]
    entries = sorted(_stats(place)) if place.is_dir() else [_stat(place, place.name)]
    entries += [_stat(file, str(file)) for file in ignores if file.is_file()]
    return hashlib.sha256("\n".join(entries).encode(errors="surrogateescape")).hexdigest()


def _stats(folder: Path | os.DirEntry[str], shown: str = "") -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{shown}/{entry.name}"
            if entry.is_dir():
                if entry.name != "__pycache__":  # Python rewrites it; DVC ignores it
                    yield from _stats(entry, name)
            elif not entry.name.endswith(".pyc"):
                yield _stat(entry, name)


def _stat(path: Path | os.DirEntry[str], shown: str) -> str:
    try:
        status = path.stat()
    except OSError:  # a broken link
        return f"{shown} -"
    return f"{shown} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
