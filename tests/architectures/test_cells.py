"""The check itself: it tells what is equal from what is not, and a refusal from a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline import api
from tests.architectures import cells as checked
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.cells import SCHEMES, Cell, cells
from tests.architectures.expected import deviation
from tests.architectures.stored import quantizable_weights, quantized_weights


def cell_of(folder: Path, scheme: dict[str, Any] = SCHEMES["w4-rtn"]) -> Cell:
    return dict(cells(CATALOGUE["llama"], {"it": scheme}, folder))["it"]


def test_a_sound_folder_is_equal_with_its_share(tmp_path: Path) -> None:
    entry = {**SCHEMES["w4-rtn"], "ignore": ["lm_head", "re:.*gate_proj"]}
    attention, matrix = 2 * (2 * 64 * 64 + 2 * 64 * 32), 2 * 64 * 96
    share = (attention + 2 * matrix) / (attention + 3 * matrix)
    assert cell_of(tmp_path, entry) == Cell("equal", share)


def test_a_changed_scale_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate = api.simulate

    def changed(model: Any, quantized: Any, scheme: Any) -> Any:
        simulated = simulate(model, quantized, scheme)
        with torch.no_grad():
            simulated.model.layers[0].mlp.down_proj.weight[3, 5] += 0.125
        return simulated

    monkeypatch.setattr(api, "simulate", changed)
    cell = cell_of(tmp_path)
    assert cell.outcome == "fault" and "from the simulation" in cell.reason


def test_a_refusal_is_one_of_plumblines_own(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, {**SCHEMES["w4-rtn"], "ignore": ["lm_head", "no_such_layer"]})
    assert cell.outcome == "refused" and "no_such_layer" in cell.reason


@pytest.mark.parametrize("error", [RuntimeError("broke"), ValueError("broke")])
def test_an_error_of_another_library_is_a_fault(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr(checked, "build_quantized_model", build)
    assert cell_of(tmp_path).outcome == "fault"


def test_an_error_after_something_was_written_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: Any) -> None:
        (arguments[-1] / "config.json").touch()
        raise ValueError("too late")

    monkeypatch.setattr(checked, "build_quantized_model", build)
    assert cell_of(tmp_path) == Cell("fault", reason="fails after it wrote: ValueError: too late")


def test_experts_and_gates_are_told_apart_on_disk(tmp_path: Path) -> None:
    folder = CATALOGUE["qwen2-moe"].write(tmp_path)
    attention, expert, shared = 2 * (2 * 64 * 64 + 2 * 64 * 32), 3 * 64 * 32, 3 * 64 * 32
    assert quantizable_weights(folder) == attention + 2 * (4 * expert + shared)
    assert quantized_weights(folder) == 0


@pytest.mark.parametrize(
    ("architecture", "cell", "problem"),
    [
        ("llama", Cell("equal", 1.0), ""),
        ("llama", Cell("equal", 0.98), "expected equal"),
        ("llama", Cell("equal", 1.02), "expected equal"),
        ("llama", Cell("fault", 1.0, "logits differ"), "expected equal"),
        ("llama", Cell("refused", reason="no"), "expected equal"),
        ("gpt2", Cell("refused", reason="transformers' Conv1D, which compressed-tensors does not store; …"), ""),
        ("gpt2", Cell("refused", reason="out of memory"), "expected refused"),
        ("gpt2", Cell("equal", 1.0), "expected refused"),
    ],
)
def test_what_deviates(architecture: str, cell: Cell, problem: str) -> None:
    found = deviation(architecture, "w4-rtn", cell)
    assert problem in found and bool(problem) == bool(found)
