"""Files that safetensors writes can be read by whoever the umask lets read."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from plumbline.api import collect, quantize, save
from plumbline.file_mode import follow_umask
from plumbline.sample_features.probe import Probe, save_probe
from tests.helpers.paths import PROJECT
from tests.helpers.tiny_models import random_llama

WRITERS = {"save_file", "save_model", "save_pretrained"}


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def usual_mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of new files under a umask, which holds during the test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_quantized_model_has_files_of_one_mode(tmp_path: Path, usual_mode: int) -> None:
    model = random_llama(vocab_size=50, hidden_size=32, intermediate_size=48).to(torch.bfloat16).eval()
    samples, scheme = [list(range(1, 40))], {"method": "rtn", "group_size": 16}
    save(model, quantize(model, collect(model, samples), scheme), scheme, tmp_path, tmp_path / "out")
    found = modes(tmp_path / "out")
    assert {"model.safetensors", "config.json"} <= set(found)
    assert set(found.values()) == {usual_mode}


def test_a_probe_has_the_mode_of_other_files(tmp_path: Path, usual_mode: int) -> None:
    arrays = {name: np.zeros(1, np.float32) for name in Probe.__annotations__ if name not in ("dtype", "sites")}
    save_probe(Probe(**arrays, dtype="float32", sites=()), tmp_path / "probe.safetensors")
    assert modes(tmp_path) == {"probe.safetensors": usual_mode}


def test_files_get_the_mode_of_a_new_one_and_nothing_is_left_behind(tmp_path: Path, usual_mode: int) -> None:
    (tmp_path / "weights").touch()
    (tmp_path / "weights").chmod(0o600)
    follow_umask([tmp_path / "weights"])
    assert modes(tmp_path) == {"weights": usual_mode}


def test_every_writer_of_safetensors_in_the_library_follows_the_umask() -> None:
    writers, silent = 0, []
    for path in sorted((PROJECT / "plumbline").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            called = {
                call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                for call in ast.walk(function)
                if isinstance(call, ast.Call)
            }
            writers += bool(called & WRITERS)
            if called & WRITERS and "follow_umask" not in called:
                silent.append(f"{path.name}:{function.name}")
    assert writers and not silent
