"""`plumbline engine` and `serve-check`: what they need, what they say, with which status they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from plumbline.api import collect, quantize, save
from plumbline.cli.main import main
from plumbline.serving import environment
from tests.helpers.stand_in_engine import stand_in_environment
from tests.helpers.tiny_models import random_llama
from tests.helpers.tokenizer import write_byte_tokenizer

SCHEME = {"method": "rtn", "group_size": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, two folders of a quantized one, a file of texts, and a stand-in for the engine."""
    place = tmp_path_factory.mktemp("place")
    model = random_llama(vocab_size=300, hidden_size=32, intermediate_size=48).to(torch.bfloat16).eval()
    write_byte_tokenizer(place / "base")
    model.save_pretrained(place / "base")
    quantized = quantize(model, collect(model, [list(range(1, 40))]), SCHEME)
    for name in ("quantized", "refused"):
        save(model, quantized, SCHEME, place / "base", place / name)
    (place / "texts.jsonl").write_text('{"text": "one text"}\n{"text": "and another"}\n')
    stand_in_environment(place / "engine")
    return place


@pytest.fixture
def run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in an empty folder that belongs to no workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLUMBLINE_ROOT", raising=False)
    monkeypatch.setenv(environment.VARIABLE, str(models / "engine"))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["serve-check", *map(str, arguments)])

    return invoke


def test_outside_of_a_workspace_it_needs_folder_base_and_texts(run, models: Path) -> None:
    for arguments in ([], [models / "quantized"], [models / "quantized", "--base", models / "base"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "outside of a workspace, give a folder as MODEL, --base FOLDER and --texts FILE" in result.output


def test_a_failure_has_status_1_a_record_and_a_next_step(run, models: Path, tmp_path: Path) -> None:
    """The stand-in's log-probabilities are not those of the model."""
    result = run(models / "quantized", "--base", models / "base", "--texts", models / "texts.jsonl")
    assert result.exit_code == 1, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("quantized is NOT served as simulated: vLLM")
    assert len(lines) < 20 and max(map(len, lines[:-1])) <= 100
    assert "native products (2 × Kernel), bfloat16, 2 texts" in result.output
    assert lines[-1].startswith("next: plumbline serve-check ") and "--reference" in lines[-1]
    record = json.loads((tmp_path / "quantized.serve_check.json").read_text())
    assert record["verdict"] == "failed" and record["measurements"]["engines"]["sequences"] == 2


def test_a_missing_kernel_has_status_3(run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "record.json"
    options = ["--base", models / "base", "--texts", models / "texts.jsonl", "--native", "--out", out]
    result = run(models / "refused", *options)
    assert result.exit_code == 3, result.output
    assert "refused was not served: vLLM has no kernel for it on this CPU" in result.output
    assert json.loads(out.read_text())["verdict"] == "no kernel"


def test_several_models_get_a_line_each_and_one_file_does_not_hold_them(run, models: Path) -> None:
    both = [models / "quantized", models / "refused", "--base", models / "base", "--texts", models / "texts.jsonl"]
    result = run(*both)
    assert result.exit_code == 1, result.output
    rows = [line.split()[:3] for line in result.stdout.splitlines() if line.startswith(("quantized ", "refused "))]
    assert rows == [["quantized", "failed", "native"], ["refused", "no", "kernel"]]
    assert run(*both, "--out", "x").exit_code == 2


def test_without_an_engine_the_command_that_makes_it_is_named(run, models: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv(environment.VARIABLE)
    monkeypatch.setattr(environment.distribution, "CHECKOUT", tmp_path)
    result = run(models / "quantized", "--base", models / "base", "--texts", models / "texts.jsonl")
    assert result.exit_code == 1 and f"environment of its own (2 GB, minutes): {environment.command()}" in result.output
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    result = run(models / "quantized", "--base", models / "base", "--texts", models / "texts.jsonl")
    assert result.exit_code == 1 and "is no virtual environment: it has no bin/python" in result.output


def test_a_folder_without_a_model_is_told_before_vllm_starts(run, models: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "--base", models / "base", "--texts", models / "texts.jsonl")
    assert result.exit_code == 1 and "no config.json" in result.output
    assert not list(tmp_path.rglob("engine.log"))


def test_in_a_workspace_the_record_of_a_path_is_kept_there_and_not_in_the_model(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from plumbline.cli.serve_check import _of_workspace

    pair, path = tmp_path / "data/quantized_model/a-w4", tmp_path / "elsewhere" / "b-w4"
    for folder in (pair, path):
        folder.mkdir(parents=True)
    with ExitStack() as stack:
        assert _of_workspace(tmp_path, ["a-w4", str(path)], stack) == {"a-w4": pair, "b-w4": path}
