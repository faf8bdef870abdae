"""Which files of a folder count, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = (".part", ".tmp", ".crdownload", ".swp", "~")  # what editors and downloads write before the real name
SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")


def as_text(name: str) -> str:
    """A file's name as text, with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str | None:
    """The longest of SUFFIXES that a name ends with."""
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), None)


def is_unfinished(name: str) -> bool:
    """Whether a name is one that editors and downloads use before the real one."""
    return name.lower().endswith(UNFINISHED)


def file_names(folder: Path) -> Iterator[str]:
    """Relative paths of the files that count, in no order: none that is hidden, in a hidden folder, or unfinished."""
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        links = [f for f in folders if os.path.islink(os.path.join(where, f))]  # noqa: PTH114, PTH118
        for file in files + links:
            if not file.startswith(".") and not is_unfinished(file):
                yield (Path(where) / file).relative_to(folder).as_posix()
