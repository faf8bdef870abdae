"""The reader against safetensors' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.base_model.tensor_reader import CODES, TensorReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {code: torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype, code in CODES.items()}
    save_file({**tensors, "none": torch.empty(0, 4), "one": torch.tensor(7.0)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_every_dtype_is_read(path: Path) -> None:
    reader, expected = TensorReader(path), load_file(path)
    for name, tensor in expected.items():
        found = reader.get_tensor(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert found.view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))
        unread = reader.unread(name)
        assert unread.get_shape() == list(tensor.shape) and unread.get_dtype() in {*CODES.values()}
        assert unread[...].view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))


def test_a_name_that_is_absent(path: Path) -> None:
    with pytest.raises(KeyError):
        TensorReader(path).get_tensor("absent")


def test_a_file_that_takes_its_place_is_not_read(path: Path) -> None:
    reader = TensorReader(path)
    save_file({"one": torch.tensor(8.0)}, path.with_name("other"))
    path.with_name("other").replace(path)
    assert reader.get_tensor("one") == 7


def test_a_file_that_is_cut_short_meanwhile(path: Path) -> None:
    reader = TensorReader(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(OSError, match="is cut short"):
        for name in (*CODES.values(), "one"):
            reader.get_tensor(name)


def test_some_rows(path: Path) -> None:
    whole, rows = TensorReader(path).get_tensor("F32"), TensorReader(path).unread("F32").rows(range(1, 3))
    assert rows.get_shape() == [2, 5] and torch.equal(rows[...], whole[1:3]) and torch.equal(rows[1], whole[2])
