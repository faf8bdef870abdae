"""DVC's hashes of files and folders, computed without DVC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path


def folder_digest(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder with these files (relative path: MD5): MD5 of their listing as JSON, and `.dir`."""
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def content_md5(path: Path) -> str:
    """DVC's hash of a file, or of a folder (`....dir`), without starting DVC.

    Compiled Python is left out, as .dvcignore has it.
    """
    if path.is_file():
        status = path.stat()
        return _file_md5(path, status.st_size, status.st_mtime_ns)
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return folder_digest({file.relative_to(path).as_posix(): content_md5(file) for file in files})


@lru_cache(maxsize=4096)
def _file_md5(path: Path, size: int, mtime_ns: int) -> str:
    """Read once per process as long as size and time of change stay: six assets depend on the base model's folder."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
