"""DVC's hashes of files and folders, computed without DVC.

DVC trusts its read-only cache files and remembers hashes by time of change: a flipped byte passes `dvc status` and
`dvc checkout`. Here every byte is read; only `TrustingHasher` skips a file whose time of change and size stayed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


class Hasher:
    """MD5s of files, each read once although it has several names (a hard link into the cache is the same file)."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], str] = {}

    def file(self, path: Path) -> str:
        """MD5 (hex) of a file's bytes.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is a device or a pipe, which has no end.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a plain file; remove it")
        key = self._key(status)
        if key not in self._seen:
            self._seen[key] = md5_of(path)
        return self._seen[key]

    def files(self, folder: Path) -> dict[str, str]:
        """MD5 (hex) of every file below a folder by its relative path, in the order of the paths."""
        return {name: self.file(folder / name) for name in sorted(_names(folder))}

    def _key(self, status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino


class TrustingHasher(Hasher):
    """The same for a process that lives on: a file is read again once its size or time of change differs."""

    def _key(self, status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


TRUSTING = TrustingHasher()
"""For every step of this process: many read the same folders."""


def dvc_digest(path: Path, hasher: Hasher | None = None) -> str:
    """DVC's hash of a file (MD5 of its bytes) or of a folder (MD5 of the list of its files' MD5s and paths, `.dir`).

    No file is left out: an artifact has none that .dvcignore would exempt.

    Args:
        hasher: None: every byte is read.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    hasher = hasher or Hasher()
    return folder_digest(hasher.files(path)) if path.is_dir() else hasher.file(path)


def folder_digest(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder with these files (relative path: MD5): MD5 of their listing as JSON, and `.dir`."""
    return hashlib.md5(listing(files)).hexdigest() + ".dir"


def listing(files: Mapping[str, str]) -> bytes:
    """What DVC's cache holds of a folder with these files."""
    rows = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return json.dumps(rows, sort_keys=True).encode()


def md5_of(path: Path) -> str:
    """MD5 (hex) of a file's bytes, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """How two folders differ, in words, a file each."""
    changed = [f"{name} changed" for name in before if name in after and after[name] != before[name]]
    gone = [f"{name} is gone" for name in before if name not in after]
    return changed + gone + [f"{name} was added" for name in after if name not in before]


def _names(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        for name in files:
            yield (Path(parent) / name).relative_to(folder).as_posix()
