"""SHA-256 of files, cached by (path, size, mtime, inode), so that unchanged files are not read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from plumbline.artifact import sha256_file

RACY_NS = 2_000_000_000
"""A younger file may change again within one tick of the clock, so its digest is not cached."""


def stamp(path: Path) -> tuple[int, int, int]:
    """(size, mtime in ns, inode) of a file, which change with its content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


class FileHashes:
    """Digests of files, cached in a JSON file outside every artifact; losing it only costs time."""

    def __init__(self, memory: Path | None = None) -> None:
        self.memory = memory
        self._known: dict[str, list[object]] = {}
        self._used: dict[str, list[object]] = {}
        if memory is not None and memory.is_file():
            try:
                loaded = json.loads(memory.read_text(encoding="utf-8"))
            except ValueError:
                loaded = {}  # ignore a corrupt cache file
            self._known = loaded if isinstance(loaded, dict) else {}

    def sha256(self, path: Path) -> str:
        """SHA-256 (hex) of the file.

        Raises:
            RuntimeError: the file changed while it was read.
        """
        key, now, before = str(path.absolute()), time.time_ns(), stamp(path)
        entry = self._known.get(key)
        if isinstance(entry, list) and entry[:3] == list(before) and len(entry) == 4:
            self._used[key] = entry
            return str(entry[3])
        digest = sha256_file(path)
        if stamp(path) != before:
            raise RuntimeError(f"{path} changed while it was read; run again when whatever writes it has finished")
        if now - before[1] > RACY_NS:
            self._used[key] = [*before, digest]
        return digest

    def save(self) -> None:
        """Write the digests that were used since the start; the others are dropped."""
        if self.memory is None:
            return
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        beside = self.memory.with_name(f"{self.memory.name}.{os.getpid()}.tmp")
        beside.write_text(json.dumps(self._used), encoding="utf-8")
        beside.replace(self.memory)
