"""Whether a model of dequantized weights has the bits that its row in the table claims.

A tool may leave a layer out, or write the base model's weights. Either would win every comparison.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.peers.environments import Unavailable
from benchmarks.peers.recipes import Format

ROWS = 64
"""Rows of a matrix that are looked at."""


def check_bits(folder: Path, form: Format) -> None:
    """Check that no group of weights has more distinct values than the format has codes.

    Args:
        folder: safetensors whose matrices within blocks ("layers." in the name) are dequantized.

    Raises:
        Unavailable: a group has more, or there is no such matrix.
    """
    checked = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                weight = tensors.get_slice(name)
                if "layers." in name and len(weight.get_shape()) == 2:
                    distinct = most_distinct(weight[:ROWS], form.group_size)
                    if distinct > 2**form.bits:
                        raise Unavailable(
                            f"not {form.name}: {distinct} distinct values in a group of {name}, {2**form.bits} codes"
                        )
                    checked += 1
    if not checked:
        raise Unavailable(f"no matrix of a block in {folder.name}")


def most_distinct(weight: torch.Tensor, group_size: int) -> int:
    """Distinct values of the group that has the most; `weight` is [rows, columns], a whole number of groups per row."""
    values = weight.unflatten(1, (-1, group_size)).sort(dim=2).values
    return int((values.diff(dim=2) != 0).sum(dim=2).max()) + 1
