"""Both models layer by layer against both in memory: the same files, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.activation_stats.params import ExecutionParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.load import load_model
from plumbline.evaluation import evaluate, layerwise_mode
from plumbline.evaluation.build import build_evaluation
from plumbline.evaluation.params import EvaluationParams
from tests.helpers.checkpoint import checkpoint
from tests.helpers.evaluation import describe

ALL = EvaluationParams(tokens_per_domain=None, samples_per_document=None, batch_tokens=100)


@pytest.fixture(scope="module")
def quantized(root: Path) -> Path:
    """The base model in 8 bits with rounded inputs, as it is exported."""
    model = load_model(root / "base", "cpu")
    scheme = {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}}
    samples = [[(7 * i + j) % 96 for j in range(24)] for i in range(4)]
    found = api.quantize(model, api.collect(model, samples), scheme)
    api.save(model, found, scheme, root / "base", root / "quantized")
    describe(root / "quantized", root / "base")
    return root / "quantized"


def run(root: Path, name: str, samples: Path, out: Path, mode: Any) -> dict[str, bytes]:
    out.mkdir()
    evaluate._measured.clear()
    evaluate._of_base.clear()
    execution = ExecutionParams(mode=mode, hidden_gib=0)
    build_evaluation(ALL, checkpoint("base", root), root / name, samples, out, execution)
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*"))}


@pytest.mark.parametrize("name", ["quantized", "perturbed"])
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_the_files_are_those_of_both_models_in_memory(
    name: str, budget: int, root: Path, samples: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(root, name, samples, tmp_path / "whole", "whole")
    monkeypatch.setattr(layerwise_mode, "LOGITS", budget)
    for loader in ("loaded", "load"):
        monkeypatch.setattr(BaseCheckpoint, loader, lambda base: pytest.fail("the whole model was loaded"))
    monkeypatch.setattr(evaluate, "load_model", lambda *args: pytest.fail("the whole model was loaded"))
    assert run(root, name, samples, tmp_path / "layerwise", "layerwise") == whole
    assert json.loads(whole["metrics.json"])["kl_mean"] > 0


def test_the_base_model_runs_once_for_all_models(
    root: Path, samples: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate._measured.clear()
    evaluate._of_base.clear()
    opened: list[Path] = []
    states = evaluate.LastStates

    def noted(streamed: Any, *args: Any) -> Any:
        opened.append(streamed.folder.name)
        return states(streamed, *args)

    monkeypatch.setattr(evaluate, "LastStates", noted)
    for name in ("quantized", "perturbed"):
        (tmp_path / name).mkdir()
        execution = ExecutionParams(mode="layerwise")
        build_evaluation(ALL, checkpoint("base", root), root / name, samples, tmp_path / name, execution)
    assert opened == ["base", "quantized", "perturbed"]


@pytest.mark.parametrize(("free", "mode"), [(1 << 60, "whole"), (1 << 10, "layerwise")])
def test_the_memory_decides_and_the_mode_is_said(
    free: int, mode: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layerwise_mode, "free_bytes", lambda device: free)
    with caplog.at_level("INFO"):
        found = layerwise_mode.layerwise_of(ExecutionParams(), ALL, 1000, checkpoint("base", root), tmp_path)
    assert (found is None) == (mode == "whole")
    assert f"mode: {mode}, at most" in caplog.text
