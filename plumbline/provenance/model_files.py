"""The files of a model's folder, read with care: a record may be forged, and a name may lead out of the folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.versioning.digest import HASH, TRUSTING

RECORD, CONFIG = "calibration.json", "config.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl", ".npz", ".py")
"""Files that decide what the model computes; one that the record does not list is a tampering."""
TOKENIZER = (
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
)
MAX_JSON = 1 << 30
"""Size limit of a JSON file in bytes: a hundred times the largest that Plumbline writes."""
RESTORE = "restore the folder from where it was made (`dvc checkout --force`, or the registry's path), then audit again"


class Unsafe(ValueError):
    """A file name or link that points outside the folder."""


def plain_file(folder: Path, name: str) -> Path:
    """Path of a regular file directly in the folder.

    Raises:
        Unsafe: the name contains a path, or the file is not a regular file.
        FileNotFoundError: the file does not exist.
    """
    if not name or name != Path(name).name or "\\" in name or "\0" in name or name in (".", ".."):
        raise Unsafe(f"the file name {name!r} leads out of the folder")
    path = folder / name
    if path.is_symlink() and not is_cache_link(path):
        raise Unsafe(f"{name} is a symbolic link; its target is not part of the folder")
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist")
    if not path.is_file():
        raise Unsafe(f"{name} is not a regular file")
    return path


def is_cache_link(path: Path) -> bool:
    """Whether a path is a link to an object of a DVC cache that holds what its name says.

    DVC checks files out as such links with `cache.type = symlink`. Any other link is foreign: its target may change
    without a trace in the folder.
    """
    if not path.is_symlink():
        return False
    try:
        target = path.resolve(strict=True)
        name = target.parent.name + target.name
        return bool(HASH.fullmatch(name)) and target.is_file() and TRUSTING.file(target) == name
    except (OSError, RuntimeError, ValueError):  # a broken link, a loop, a device
        return False


def irregular(folder: Path) -> list[str]:
    """Relative paths of foreign links and devices below a folder, sorted."""
    paths = (path for path in folder.rglob("*") if not is_cache_link(path))
    strange = (path for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir()))
    return sorted(path.relative_to(folder).as_posix() for path in strange)


@contextlib.contextmanager
def without_links(folder: Path) -> Iterator[Path]:
    """The folder, or, if it holds links into DVC's cache, a temporary one with the files themselves."""
    links = [path for path in folder.rglob("*") if is_cache_link(path)]
    if not links:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="plumbline-audit-") as scratch:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            place = Path(scratch) / folder.name / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), place)
            except OSError:  # another file system
                shutil.copyfile(path, place)
        yield Path(scratch) / folder.name


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: the file is too large, or is not a JSON object.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes; the limit for a record is {MAX_JSON:,}")
    return parse_object(path.read_bytes(), path.name)


def parse_object(data: bytes, name: str = "it") -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the data are not a JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


def record_of(folder: Path) -> dict[str, Any]:
    """Read calibration.json of a model; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_object(plain_file(folder, RECORD))
    return {}


def samples_of(record: Any) -> list[dict[str, Any]]:
    """The samples in the record, in order; entries that are not objects are left out."""
    calibration_set = record.get("calibration_set") if isinstance(record, dict) else None
    listed = calibration_set.get("samples") if isinstance(calibration_set, dict) else None
    return [sample for sample in listed if isinstance(sample, dict)] if isinstance(listed, list) else []


def documents_of(record: Any) -> set[str]:
    """Ids of the documents in the samples; samples written by the base model have none."""
    listed = (sample.get("doc_ids") for sample in samples_of(record))
    return {str(document) for documents in listed if isinstance(documents, list) for document in documents}
