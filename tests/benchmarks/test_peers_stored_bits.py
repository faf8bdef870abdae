"""A model that has more values than its format has codes is not ranked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.peers.contenders.auto_round import put_weights
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.recipes import Format
from benchmarks.peers.stored_bits import check_bits, most_distinct

FORM = Format(3, 16)


def rounded(rows: int, columns: int, codes: int = 8) -> torch.Tensor:
    """Random codes with a scale per row and group of 16."""
    torch.manual_seed(0)
    scales = torch.rand(rows, columns // 16).repeat_interleave(16, dim=1) + 0.5
    weight = torch.randint(0, codes, (rows, columns)).float()
    weight[:, :codes] = torch.arange(codes)  # every code is there
    return (weight - codes // 2) * scales


def folder(tmp_path: Path, **matrices: torch.Tensor) -> Path:
    """A model's folder."""
    names = {f"model.layers.0.mlp.{name}.weight": weight for name, weight in matrices.items()}
    embedding = {"model.embed_tokens.weight": torch.randn(4, 32), "model.layers.0.norm.weight": torch.randn(32)}
    save_file({**names, **embedding}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 2, 2], 2), ([0, -1, 1, 0.5], 4), ([0, 0, 0, 0], 1)])
def test_distinct_values_are_counted_by_group(values: list[float], expected: int) -> None:
    assert most_distinct(torch.tensor([[7.0, 7, 7, 7, *values]]), 4) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_model_passes(tmp_path: Path, dtype: torch.dtype) -> None:
    check_bits(folder(tmp_path, up=rounded(80, 64).to(dtype)), FORM)


def test_one_matrix_left_as_it_was_is_named(tmp_path: Path) -> None:
    left = folder(tmp_path, up=rounded(80, 64), down=torch.randn(8, 32))
    with pytest.raises(Unavailable, match=r"not W3A16-g16: 16 distinct values in a group of .*mlp\.down\.weight, 8 c"):
        check_bits(left, FORM)


def test_a_bit_more_than_the_format_is_not_the_format(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="9 distinct"):
        check_bits(folder(tmp_path, up=rounded(8, 32, codes=9)), FORM)


def test_a_folder_without_matrices_is_not_ranked(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no matrix"):
        check_bits(folder(tmp_path), FORM)


def test_auto_rounds_weights_replace_those_within_blocks_alone() -> None:
    def model(fill: float) -> torch.nn.Module:
        layers = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
        whole = torch.nn.ModuleDict({"model": layers, "lm_head": torch.nn.Linear(4, 4)})
        for weight in whole.parameters():
            torch.nn.init.constant_(weight, fill)
        return whole

    base = model(1.0)
    put_weights(base, model(2.0).to(torch.bfloat16))
    assert base["model"]["layers"][0].weight.unique().tolist() == [2.0]
    assert base["model"]["layers"][0].weight.dtype == torch.float32
    assert base["lm_head"].weight.unique().tolist() == [1.0]
