"""A file written tensor by tensor against safetensors' own writer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from plumbline.activation_stats import tensor_file
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.store import HEADER, TENSORS, load, save_parts
from plumbline.activation_stats.store import save as save_stats
from plumbline.activation_stats.tensor_file import CODES, TensorFile

SHAPES = st.lists(st.integers(0, 3), max_size=3)
CONTENTS = st.dictionaries(st.text(min_size=1, max_size=6), st.tuples(st.sampled_from(list(CODES)), SHAPES), max_size=8)


@given(CONTENTS)
def test_the_bytes_are_those_of_safetensors(tmp_path_factory: Any, contents: dict[str, Any]) -> None:
    contents = {name: value for name, value in contents.items() if name.isprintable() and name != "__metadata__"}
    tensors = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        for name, (dtype, shape) in contents.items()
    }
    folder: Path = tmp_path_factory.mktemp("file")
    with TensorFile(folder / "x") as file:
        for name, tensor in tensors.items():
            file.add(name, tensor)
        file.finish()
    assert (folder / "x").read_bytes() == save(tensors)
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_what_is_added_may_change_afterwards_and_long_contents_come_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plumbline.activation_stats.tensor_file.PIECE", 7)
    x = torch.arange(9.0)
    with TensorFile(tmp_path / "x") as file:
        file.add("a", x)
        x += 1
        file.add("b", x.view(3, 3).T)
        file.finish()
    assert (tmp_path / "x").read_bytes() == save({"a": torch.arange(9.0), "b": x.view(3, 3).T.contiguous()})


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="unnamed files are counted in /proc")
def test_the_disk_holds_what_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at every piece that is copied: blocks of the file and of the unnamed ones, which tell their own size."""
    tensors = {
        f"{site}:{what}": torch.full((1 << 17,), number + 1.0, dtype=dtype)
        for number, site in enumerate("abcdefgh")
        for what, dtype in (("hessian", torch.float64), ("max", torch.bfloat16), ("rows", torch.int32))
    }
    once, most = sum(tensor.nbytes for tensor in tensors.values()), [0]
    copied = tensor_file.copy

    def counted(source: Any, *args: Any) -> None:
        for file in file_of._waiting.values():
            file.flush()
        files = [*(os.fstat(file.fileno()) for file in file_of._waiting.values()), (tmp_path / "x").stat()]
        most[0] = max(most[0], sum(512 * stat.st_blocks for stat in files))
        copied(source, *args)

    monkeypatch.setattr(tensor_file, "copy", counted)
    with TensorFile(tmp_path / "x") as file_of:
        for name, tensor in tensors.items():
            file_of.add(name, tensor)
        file_of.finish()
    assert (tmp_path / "x").read_bytes() == save(tensors)
    assert once <= most[0] < once + 2 * (1 << 20), "one tensor twice at most"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "x") as file:
        file.add("a", torch.zeros(1))
        with pytest.raises(ValueError, match="two tensors are named 'a'"):
            file.add("a", torch.zeros(1))
        with pytest.raises(ValueError, match="'b' is torch.complex64, expected one of I64"):
            file.add("b", torch.zeros(1, dtype=torch.complex64))
    assert not list(tmp_path.iterdir())


def test_statistics_in_parts_give_the_same_bytes_and_are_read_site_by_site(
    llama: Any, samples: Any, tmp_path: Path
) -> None:
    stats = collect(llama(torch.bfloat16), samples, StatisticsParams(), base_model_digest="m", fingerprint="t")
    stats = replace(stats, unreached=("a", "b"))
    names = list(stats.sites)
    parts = [
        replace(stats, sites={name: stats.sites[name] for name in names[i::3]}, unreached=("b", "a")[i : i + 1])
        for i in range(3)
    ]
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    save_stats(stats, tmp_path / "whole", {"calibration_set": "c"})
    save_parts(iter(parts), tmp_path / "parts", {"calibration_set": "c"})
    for name in (HEADER, TENSORS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    some = load(tmp_path / "parts", [names[2], "nowhere"])
    hessian, expected = some.sites[names[2]].hessian, stats.sites[names[2]].hessian
    assert list(some.sites) == [names[2]] and hessian is not None and expected is not None
    assert torch.equal(hessian, expected) and some.sample_ids == stats.sample_ids
