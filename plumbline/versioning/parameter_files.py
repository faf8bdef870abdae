"""DVC's reading of parameter files, once per content: by itself it parses one for every stage that names it.

DVC parses YAML in pure Python. A step has it read params.yaml and the files of facts a dozen times, which takes longer
than most steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

KEPT = 16
"""Contents that are kept; a workspace has four such files."""


def read_once() -> None:
    """Make DVC, in this process, parse a parameter file again only if its inode, size or modification time changed."""
    from dvc.dependency import param

    if not hasattr(param.load_path, "parsed"):
        param.load_path = _once(param.load_path)


def _once(load_path: Callable[..., Any]) -> Callable[..., Any]:
    """DVC's function with a memory. What it returns is shared by its callers, which only read it."""

    @lru_cache(maxsize=KEPT)
    def parsed(path: str, fs: Any, *stamp: int) -> Any:
        return load_path(path, fs)

    def load(path: str, fs: Any, **options: Any) -> Any:
        if options or getattr(fs, "protocol", "") != "local":  # of another commit or machine
            return load_path(path, fs, **options)
        status = Path(path).stat()
        return parsed(path, fs, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    load.parsed = parsed  # type: ignore[attr-defined]
    return load
