"""Parts of an artifact on disk, in the order in which they are made; each is a point to resume from.

A part is a safetensors file, and a JSON file of facts, which is written once the other is on the disk: a part without
it does not exist.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from plumbline.activation_stats.tensor_file import TensorFile
from plumbline.artifact import known_json, replace_text, to_disk
from plumbline.base_model.weight_files import header

KEY = "key.json"


class Pieces:
    """Parts of one artifact in a folder. Parts that were made for another one, or cut short, are not found."""

    def __init__(self, folder: Path, key: str) -> None:
        """
        Args:
            folder: created with the first part; parts of another artifact are removed from it then.
            key: digest of everything that decides the content of the parts.
        """
        self.folder, self.key = folder, key
        self.is_ours: bool = known_json(folder / KEY) == key
        """Whether the folder holds parts of this artifact, as far as they are complete."""

    def claim(self) -> None:
        """Make the folder, and remove what another artifact left there."""
        if not self.is_ours:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            replace_text(self.folder / KEY, json.dumps(self.key))
            self.is_ours = True

    def path(self, name: str) -> Path:
        """The safetensors file of a part."""
        return self.folder / f"{name}.safetensors"

    def facts(self, name: str) -> dict[str, Any] | None:
        """The facts of a part; None: it is not there."""
        if (saved := self.saved(name)) is None:
            return None
        path = self.path(name)
        return saved["facts"] if path.is_file() and path.stat().st_size == saved["size"] else None

    def saved(self, name: str) -> dict[str, Any] | None:
        """`facts` and `size` of a part that was written, whatever its file is by now; None: it was not."""
        saved: dict[str, Any] | None = known_json(self.folder / f"{name}.json") if self.is_ours else None
        return saved

    def write(self, name: str, tensors: Iterable[Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Write a part.

        Args:
            tensors: groups of tensors, one group in memory at a time.
            facts: JSON-able; may be filled while `tensors` is read.
        """
        self.claim()
        with TensorFile(self.path(name)) as writer:
            for group in tensors:
                for key, tensor in group.items():
                    writer.add(key, tensor)
            writer.finish()
        to_disk(self.path(name))
        size = self.path(name).stat().st_size
        replace_text(self.folder / f"{name}.json", json.dumps({"size": size, "facts": dict(facts)}))

    def remove(self, name: str) -> None:
        """Remove a part, if it is there."""
        for path in (self.folder / f"{name}.json", self.path(name)):  # facts first: they say that it is there
            path.unlink(missing_ok=True)

    def tensor(self, name: str, key: str) -> Tensor:
        """A tensor of a part."""
        with safe_open(self.path(name), framework="pt") as file:
            tensor: Tensor = file.get_tensor(key).clone()
            return tensor

    def tensors(self, name: str) -> dict[str, dict[str, Any]]:
        """The tensors of a part by name, each with `dtype`, `shape` and `data_offsets`."""
        return header(self.path(name))
