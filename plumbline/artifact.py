"""What every artifact on disk has in common: canonical JSON, deterministic Parquet, digests by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces, UTF-8, no NaN (raises ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of each named file of `folder`, by name, in order of name."""
    return {name: sha256_file(folder / name) for name in sorted(names)}


def write_json(path: Path, value: Any) -> None:
    """Write `value` for people and for hashing: sorted keys, one space of indent, a final newline, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: it is not JSON; the message names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} line {error.lineno}: not JSON ({error.msg}); restore it with `dvc checkout`"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Put `text` (UTF-8) in the place of what a file held, whole or not at all; for one writer at a time."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_table(path: Path, table: pa.Table, row_group_size: int = 4096) -> None:
    """Write a Parquet file whose bytes depend on the table alone."""
    import pyarrow.parquet as pq  # the other functions serve commands that start sooner without it

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size, write_statistics=False)


def link_or_copy(source: Path, target: Path) -> None:
    """Put an unchanged file of an earlier version into a new one without a second copy where the disk allows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
