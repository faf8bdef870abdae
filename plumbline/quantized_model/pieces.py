"""The parts of a quantized model on disk, in the order in which they are made; each is a point to resume from.

A part is a safetensors file of tensors under their names in the checkpoint, and a JSON file of facts, which is written
last: a part without it does not exist.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor

from plumbline.activation_stats.tensor_file import CODES, TensorFile, copy, layout
from plumbline.artifact import read_json, replace_text
from plumbline.base_model.weight_files import INDEX, SINGLE, header

KEY = "key.json"
HIDDEN = "hidden"
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Pieces:
    """Parts of one model in a folder. Parts that were made for another model, or cut short, are not found."""

    def __init__(self, folder: Path, key: str) -> None:
        """
        Args:
            folder: created with the first part; parts of another model are removed from it then.
            key: digest of everything that decides the content of the parts.
        """
        self.folder, self._key = folder, key
        self._is_ours = (folder / KEY).is_file() and read_json(folder / KEY) == key

    def facts(self, name: str) -> dict[str, Any] | None:
        """The facts of a part; None: it is not there."""
        path = self.folder / f"{name}.json"
        if not self._is_ours or not path.is_file():
            return None
        facts: dict[str, Any] = read_json(path)
        files = {file: self.folder / file for file in facts["files"]}
        complete = all(path.is_file() and path.stat().st_size == facts["files"][file] for file, path in files.items())
        return facts["facts"] if complete else None

    def write(
        self, name: str, tensors: Iterable[Mapping[str, Tensor]], hidden: Tensor, facts: Mapping[str, Any]
    ) -> None:
        """Write a part.

        Args:
            tensors: groups of tensors, one group in memory at a time.
            hidden: what the simulated part computed for the sample of the check.
            facts: JSON-able; may be filled while `tensors` is read.
        """
        if not self._is_ours:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            replace_text(self.folder / KEY, json.dumps(self._key))
            self._is_ours = True
        for file, groups in ((name, tensors), (f"{name}.{HIDDEN}", [{HIDDEN: hidden}])):
            with TensorFile(self.folder / f"{file}.safetensors") as writer:
                for group in groups:
                    for key, tensor in group.items():
                        writer.add(key, tensor)
                writer.finish()
        files = {f"{file}.safetensors": 0 for file in (name, f"{name}.{HIDDEN}")}
        sizes = {file: (self.folder / file).stat().st_size for file in files}
        replace_text(self.folder / f"{name}.json", json.dumps({"files": sizes, "facts": dict(facts)}))

    def hidden(self, name: str) -> Tensor:
        """What the simulated part computed."""
        with safe_open(self.folder / f"{name}.{HIDDEN}.safetensors", framework="pt") as file:
            tensor: Tensor = file.get_tensor(HIDDEN).clone()
            return tensor

    def tensors(self, name: str) -> dict[str, dict[str, Any]]:
        """The tensors of a part by name, each with `dtype`, `shape` and `data_offsets`."""
        return header(self.folder / f"{name}.safetensors")


def write_shards(
    pieces: Pieces, names: Sequence[str], order: Sequence[str], out: Path, largest: str, parameters: int
) -> None:
    """Write the weight files of a checkpoint from its parts; the bytes are those that `save_pretrained` writes.

    Args:
        names: of the parts.
        order: the names of all tensors, in the order in which they are divided among the files.
        largest: size of a file, as `save_pretrained` takes it.
        parameters: of the model, for the index.

    Raises:
        ValueError: `order` does not name every tensor of the parts.
    """
    places = {key: (name, entry) for name in names for key, entry in pieces.tensors(name).items()}
    if set(order) != set(places) or len(order) != len(places):
        strange = sorted(set(order) ^ set(places))
        raise ValueError(f"{strange[0]}: the parts of the model and the order of its tensors do not agree")
    starts = {name: 8 + _length(pieces.folder / f"{name}.safetensors") for name in names}
    empty = {
        key: torch.empty(places[key][1]["shape"], dtype=DTYPES[places[key][1]["dtype"]], device="meta") for key in order
    }
    split = split_torch_state_dict_into_shards(empty, filename_pattern=_PATTERN, max_shard_size=largest)
    for file, keys in split.filename_to_tensors.items():
        _join(pieces.folder, starts, {key: places[key] for key in keys}, out / file)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_PATTERN = SINGLE.replace(".safetensors", "{suffix}.safetensors")


def _length(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def _join(folder: Path, starts: Mapping[str, int], places: Mapping[str, tuple[str, dict[str, Any]]], out: Path) -> None:
    """Write a safetensors file of tensors that lie in others."""
    head, offsets = layout(
        {key: (entry["dtype"], entry["shape"]) for key, (_, entry) in places.items()}, {"format": "pt"}
    )
    with out.open("wb") as file:
        file.write(head)
        for key in offsets:
            name, entry = places[key]
            first, last = entry["data_offsets"]
            with (folder / f"{name}.safetensors").open("rb") as part:
                copy(part, starts[name] + first, last - first, file, f"{out.name}: {key!r}")
