"""File formats of all artifacts: canonical JSON, deterministic Parquet, content digests."""

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
    """Serialize a value to canonical JSON: sorted keys, no spaces, UTF-8; NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of the named files of `folder`, by name, sorted."""
    return {name: sha256_file(folder / name) for name in sorted(names)}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable, deterministic JSON: sorted keys, one space of indent, final newline, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} line {error.lineno}: not JSON ({error.msg}); restore it with `dvc checkout`"
        ) from error


def known_json(path: Path) -> Any | None:
    """The content of a JSON file that can be made again; None: it is not there, or is cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def to_disk(path: Path) -> None:
    """Return once the content of a file is on the disk. What is written later can rely on it if the power fails."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file by `text` (UTF-8) atomically, also in a power failure; for one writer at a time."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    to_disk(draft)
    draft.replace(path)


def write_table(path: Path, table: pa.Table, row_group_size: int = 4096) -> None:
    """Write a Parquet file whose bytes depend only on the table."""
    import pyarrow.parquet as pq  # imported here: commands that use only the other functions start faster

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size, write_statistics=False)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link an unchanged file into a new version of an artifact; copy it if the file system cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
