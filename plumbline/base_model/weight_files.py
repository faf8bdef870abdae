"""The safetensors of a model's folder: which file holds which tensor. Reads headers, no tensor; imports no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library accepts."""
AGAIN = "the download is incomplete, or the file was damaged; fetch it again"


def weight_files(folder: Path) -> dict[str, str]:
    """Name of every tensor that transformers reads -> its file, from the headers of the files.

    Raises:
        ValueError: there is neither file nor index; the index is damaged, names a file outside the folder or a missing
            one, or a tensor that is not in its file; a file is truncated; or two files hold a tensor of one name.
    """
    index = _index(folder)
    files: dict[str, str] = {}
    for file in sorted(set(index.values())):
        for name in header(folder / file):
            if files.setdefault(name, file) != file:
                raise ValueError(
                    f"{folder.name}: both {files[name]} and {file} hold {name}; the folder mixes two downloads: fetch "
                    "the model into an empty folder"
                )
    if lost := sorted(name for name, file in index.items() if name and files.get(name) != file):
        raise ValueError(
            f"{folder.name}/{index[lost[0]]}: no tensor {lost[0]}, which {INDEX} places there ({len(lost)} such); "
            "index and files belong to different downloads: fetch both again"
        )
    return files


def weight_entries(folder: Path, files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The tensors of `weight_files` by name, each with `dtype` (safetensors' name) and `shape`."""
    return {name: entry for file in sorted(set(files.values())) for name, entry in header(folder / file).items()}


def unread_files(folder: Path) -> list[str]:
    """Names of the safetensors in the folder that transformers does not read."""
    read = set(_index(folder).values())
    return sorted(path.name for path in folder.glob("*.safetensors") if path.name not in read)


def header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file by name, each with `dtype`, `shape` and `data_offsets`.

    Raises:
        ValueError: the file is truncated, longer than its header says, or no safetensors file.
    """
    where, size = f"{path.parent.name}/{path.name}", path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"{where}: {size} bytes, too short for the header of a safetensors file; {AGAIN}")
        try:
            content = json.loads(file.read(length))
            tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{where}: its header is not that of a safetensors file ({error}); {AGAIN}") from error
    if size != 8 + length + end:
        raise ValueError(f"{where}: {size} bytes, its header describes {8 + length + end}; {AGAIN}")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file by the index; a single file is under the name "", as transformers prefers it to an index."""
    if (folder / SINGLE).is_file():
        return {"": SINGLE}
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder.name}: found neither {SINGLE} nor {INDEX}; the download is incomplete, or its files were renamed"
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder.name}/{INDEX}: not an index of safetensors ({error!r}); fetch it again") from error
    if not isinstance(index, Mapping) or not index or not all(isinstance(file, str) for file in index.values()):
        raise ValueError(f"{folder.name}/{INDEX}: `weight_map` names no files; fetch it again")
    for name, file in sorted(index.items()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(
                f"{folder.name}/{INDEX}: {name} is in {file!r}, expected the name of a safetensors file in this "
                "folder; a file elsewhere would be no part of the model's digest"
            )
        if not (folder / file).is_file():
            raise ValueError(f"{folder.name}: {INDEX} names {file}, which is not there; the download is incomplete")
    return dict(index)
