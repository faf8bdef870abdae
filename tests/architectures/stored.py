"""Counts of weights in the safetensors of a folder, read from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from plumbline.base_model.parts import ATTENTION, EXPERTS, MLP, SHARED_EXPERTS, STATE_SPACE, kind_of

QUANTIZABLE = (ATTENTION, STATE_SPACE, MLP, EXPERTS, SHARED_EXPERTS)
NO_MATRICES = ("A_log", "conv", "slope_rate")
"""Parts of names of weights that no matrix product reads: decays of a state, convolutions."""


def quantizable_weights(folder: Path) -> int:
    """Weights of the matrices outside embeddings, head, routers and towers, of a folder in full precision."""
    return sum(
        math.prod(shape)
        for name, shape, _ in tensors(folder)
        if len(shape) - (kind_of(name) == EXPERTS and len(shape) == 3) == 2
        and kind_of(name) in QUANTIZABLE
        and not any(part in name.rsplit(".", 2)[-2] + name.rsplit(".", 1)[-1] for part in NO_MATRICES)
    )


def quantized_weights(folder: Path) -> int:
    """Those of them that an exported folder stores as codes: packed, or in bytes beside a scale."""
    stored = {
        name: (shape, dtype)
        for name, shape, dtype in tensors(folder)
        if kind_of(name.rpartition(".")[0]) in QUANTIZABLE
    }
    count = 0
    for name, (shape, dtype) in stored.items():
        if name.endswith("weight_shape"):
            count += math.prod(_values(folder, name))
        elif dtype == "I8" and f"{name}_scale" in stored:
            count += math.prod(shape)
    return count


def tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    """Name, shape and dtype (as safetensors name it) of every stored tensor."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118
                entry = handle.get_slice(name)
                yield name, list(entry.get_shape()), entry.get_dtype()


def _values(folder: Path, name: str) -> list[int]:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as handle:
            if name in handle.keys():  # noqa: SIM118
                values: list[int] = handle.get_tensor(name).tolist()
                return values
    raise KeyError(name)
