"""Both models layer by layer against both in memory: the same files, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline import api
from plumbline.activation_stats.params import ExecutionParams
from plumbline.activation_stats.pieces import Pieces
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


def run(
    root: Path, name: str, samples: Path, out: Path, mode: Any, resume: Path | None = None, params: Any = ALL
) -> dict[str, bytes]:
    out.mkdir()
    evaluate._measured.clear()
    evaluate._of_base.clear()
    execution = ExecutionParams(mode=mode, hidden_gib=0)
    build_evaluation(params, checkpoint("base", root), root / name, samples, out, execution, "v", resume)
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


def test_progress_names_the_model_and_counts_each_layer(
    root: Path, samples: Path, quantized: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="plumbline.progress"):
        run(root, "quantized", samples, tmp_path / "layerwise", "layerwise")
    ends = {record.progress.what: record.progress for record in caplog.records}  # type: ignore[attr-defined]
    assert list(ends) == ["evaluation (base)", "evaluation (quantized)"]
    padded = {progress.total // 2 for progress in ends.values()}  # two layers
    assert len(padded) == 1 and all(progress.done == progress.total > 0 for progress in ends.values())
    assert str(ends["evaluation (base)"]).endswith(" tokens × layers (100 %)")


@pytest.mark.parametrize(("free", "mode"), [(1 << 60, "whole"), (1 << 10, "layerwise")])
def test_the_memory_decides_and_the_mode_is_said(
    free: int, mode: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layerwise_mode, "free_bytes", lambda device: free)
    with caplog.at_level("INFO"):
        found = layerwise_mode.layerwise_of(ExecutionParams(), ALL, 1000, checkpoint("base", root), tmp_path)
    assert (found is None) == (mode == "whole")
    assert f"mode: {mode}, at most" in caplog.text


LAYERS = ["model.layers.0.states", "model.layers.1.states"]
POINTS = [f"{model}.{layer}" for model in ("base", "quantized") for layer in LAYERS] + ["divergence"]
"""What is put on disk for divergences, in order."""


@contextmanager
def stopped(computed: list[str], before: str = "") -> Iterator[None]:
    """Within the context, note what is computed, and stop before that of this name is on disk."""
    write = Pieces.write

    def note(pieces: Any, name: str, tensors: Any, facts: Any) -> None:
        computed.append(name)
        if name == before:
            raise KeyboardInterrupt
        write(pieces, name, tensors, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pieces, "write", note)
        yield


def test_every_layer_is_a_point_to_resume_from(root: Path, samples: Path, quantized: Path, tmp_path: Path) -> None:
    """Stopped in every layer of either model in turn: each is computed once more, and nothing else."""
    expected, parts = run(root, "quantized", samples, tmp_path / "expected", "layerwise"), tmp_path / "parts"
    computed: list[str] = []
    for point in POINTS:
        with stopped(computed, point), pytest.raises(KeyboardInterrupt):
            run(root, "quantized", samples, tmp_path / f"stopped at {point}", "layerwise", parts)
        assert len(list(parts.glob("*.states.json"))) <= 2  # one per model
    with stopped(computed):
        assert run(root, "quantized", samples, tmp_path / "last", "layerwise", parts) == expected
        assert computed == [point for point in POINTS for _ in range(2)]
        # the caller may fail to publish it
        assert run(root, "quantized", samples, tmp_path / "again", "layerwise", parts) == expected
    assert computed == [point for point in POINTS for _ in range(2)]


def test_likelihoods_of_items_are_points_to_resume_from(
    root: Path, samples: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "encoded", lambda items, tokenizer: ([np.arange(1, 6)] * 4, np.array([2] * 4)))
    items = [{"question": text, "choices": ["x", "y"], "answer": 0} for text in "ab"]
    (root / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    monkeypatch.setattr(BaseCheckpoint, "tokenizer", lambda base: None)
    params, parts = ALL.model_copy(update={"items": "items.jsonl"}), tmp_path / "parts"
    expected = run(root, "quantized", samples, tmp_path / "expected", "layerwise", params=params)
    computed: list[str] = []
    for point in ("items.base.model.layers.1.states", "likelihoods.base", "items.quantized.model.layers.1.states"):
        with stopped(computed, point), pytest.raises(KeyboardInterrupt):
            run(root, "quantized", samples, tmp_path / f"stopped at {point}", "layerwise", parts, params)
    with stopped(computed):
        assert run(root, "quantized", samples, tmp_path / "last", "layerwise", parts, params) == expected
    of_base, of_quantized = ([f"items.{model}.{layer}" for layer in LAYERS] for model in ("base", "quantized"))
    found = [*of_base, of_base[1], *["likelihoods.base"] * 2, *of_quantized, of_quantized[1], "likelihoods.quantized"]
    assert computed == [*POINTS, *found]


def test_the_base_model_of_a_second_evaluation_is_a_point_to_resume_from(
    root: Path, samples: Path, quantized: Path, tmp_path: Path
) -> None:
    """Its states are in the memory of a process that was killed, so they are put on disk once more."""
    run(root, "quantized", samples, tmp_path / "first", "layerwise")
    computed: list[str] = []
    execution, out, parts = ExecutionParams(mode="layerwise"), tmp_path / "second", tmp_path / "parts"
    out.mkdir()
    inputs = ALL, checkpoint("base", root), root / "perturbed", samples
    with stopped(computed, POINTS[3]), pytest.raises(KeyboardInterrupt):
        build_evaluation(*inputs, out, execution, "v", parts)
    with stopped(computed):
        run(root, "perturbed", samples, tmp_path / "last", "layerwise", parts)
    assert computed == [POINTS[1], POINTS[2], POINTS[3], POINTS[3], POINTS[4]]


def test_states_of_other_weights_are_not_used(root: Path, samples: Path, quantized: Path, tmp_path: Path) -> None:
    expected = run(root, "perturbed", samples, tmp_path / "expected", "layerwise")
    with stopped([], POINTS[3]), pytest.raises(KeyboardInterrupt):
        run(root, "quantized", samples, tmp_path / "stopped", "layerwise", tmp_path / "parts")
    assert run(root, "perturbed", samples, tmp_path / "last", "layerwise", tmp_path / "parts") == expected
