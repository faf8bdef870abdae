"""DVC's hashes of files and folders, computed without DVC.

DVC trusts its read-only cache files and caches hashes by modification time: a flipped byte passes `dvc status` and
`dvc checkout`. `Hasher` reads every byte. `TrustingHasher` skips a file whose size and modification time are unchanged.
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
    """MD5s of files. Each inode is read once: a hard link into the cache is the same file."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], str] = {}

    def file(self, path: Path) -> str:
        """MD5 (hex) of a file's bytes.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: it is a device or a pipe, which may have no end.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a plain file; remove it")
        key = self._key(status)
        if key not in self._seen:
            self._seen[key] = md5_of(path)
        return self._seen[key]

    def files(self, folder: Path) -> dict[str, str]:
        """Relative path -> MD5 (hex) of every file below a folder, sorted by path."""
        return {name: self.file(folder / name) for name in sorted(_names(folder))}

    def _key(self, status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino


class TrustingHasher(Hasher):
    """A hasher for a long-lived process: it reads a file again when its size or modification time differs."""

    def _key(self, status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


TRUSTING = TrustingHasher()
"""Shared by all steps of this process, because many read the same folders."""


def dvc_digest(path: Path, hasher: Hasher | None = None) -> str:
    """DVC's hash of a file (MD5 of its bytes) or of a folder (MD5 of the list of its files' MD5s and paths, `.dir`).

    No file is left out: an artifact has no files that .dvcignore excludes.

    Args:
        hasher: None: every byte is read.

    Raises:
        FileNotFoundError: `path` is absent.
    """
    hasher = hasher or Hasher()
    return folder_digest(hasher.files(path)) if path.is_dir() else hasher.file(path)


def folder_digest(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder with these files (relative path -> MD5): the MD5 of its JSON listing, and `.dir`."""
    return hashlib.md5(listing(files)).hexdigest() + ".dir"


def listing(files: Mapping[str, str]) -> bytes:
    """The JSON listing that DVC's cache holds for a folder with these files."""
    rows = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return json.dumps(rows, sort_keys=True).encode()


def md5_of(path: Path) -> str:
    """MD5 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The differences between two folders, one sentence per file."""
    changed = [f"{name} changed" for name in before if name in after and after[name] != before[name]]
    gone = [f"{name} is gone" for name in before if name not in after]
    return changed + gone + [f"{name} was added" for name in after if name not in before]


def _names(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        for name in files:
            yield (Path(parent) / name).relative_to(folder).as_posix()
