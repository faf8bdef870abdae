"""The kinds of all tiny models' weights: the same by the names of modules and by those of the published checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from plumbline.base_model.parts import OTHER, kind_of
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.stored import tensors
from tests.architectures.test_architectures import QUICK

OTHERS = ("altup", "laurel", "per_layer", "correct_output_scale", "layers.2.linear", "layers.1.linear")
"""Parts of names of matrices that belong to no kind: Gemma's extras beside its blocks, Zamba2's bridge."""


def check(architecture: str, folder: Path) -> None:
    blueprint = CATALOGUE[architecture]
    stored: Counter[str] = Counter()
    for name, shape, _ in tensors(blueprint.write(folder)):
        stored[kind_of(name)] += math.prod(shape)
        assert len(shape) < 2 or kind_of(name) != OTHER or any(part in name for part in OTHERS), name
    with torch.device("meta"):
        model = blueprint.auto.from_config(blueprint.configuration())
    held: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        held[kind_of(name)] += weight.numel()
    for name, buffer in model.named_buffers():
        if name in model.state_dict():
            held[kind_of(name)] += buffer.numel()
    assert stored == held


@pytest.mark.parametrize("architecture", QUICK)
def test_a_few_checkpoints_have_the_kinds_of_their_modules(architecture: str, tmp_path: Path) -> None:
    check(architecture, tmp_path)


@pytest.mark.architectures
@pytest.mark.parametrize("architecture", CATALOGUE)
def test_every_checkpoint_has_the_kinds_of_its_modules(architecture: str, tmp_path: Path) -> None:
    check(architecture, tmp_path)
