"""The weight files of a checkpoint, written from the parts of a model on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.tensor_file import copy, layout
from plumbline.base_model.tensor_reader import DTYPES
from plumbline.base_model.weight_files import INDEX, SINGLE


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
