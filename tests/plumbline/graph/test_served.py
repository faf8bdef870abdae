"""The check of served models: what it serves, what it remembers, and that it never passes untried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import write_json
from plumbline.graph import served
from plumbline.graph.served import served_as_simulated
from plumbline.serving import check, environment
from plumbline.serving.record import record_of, record_path
from tests.helpers.stand_in_engine import stand_in_environment


def record(verdict: str = "passed", products: str = "native") -> dict[str, Any]:
    return {"verdict": verdict, "products": products, "sentence": f"what was found: {verdict}"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two models, whose base model and texts are not read."""
    for pair in ("a-w4", "b-w4"):
        folder = tmp_path / "data" / "quantized_model" / pair
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {"dtype": "float32"})
        (folder / "model.safetensors").write_bytes(pair.encode())
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment.distribution, "CHECKOUT", tmp_path / "no checkout")
    monkeypatch.setattr(served, "base_and_texts", lambda root: (root / "data/quantized_model/a-w4", False, [[1, 2]]))
    return tmp_path


@pytest.fixture
def engine(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """An engine whose records the test sets; it fails for a model that has none."""
    records: dict[str, dict[str, Any]] = {}

    def serve(environment: Path, base: Path, models: Mapping[str, Path], *rest: Any) -> dict[str, dict[str, Any]]:
        return {name: records.pop(name) | {"model": check.base_model_digest(models[name])} for name in models}

    monkeypatch.setattr(check, "serve_check", serve)
    monkeypatch.setenv(environment.VARIABLE, str(stand_in_environment(root / "engine")))
    return records


def test_without_an_engine_it_warns_with_the_command_and_does_not_pass(root: Path) -> None:
    outcome = served_as_simulated(root, ["a-w4", "b-w4"])
    assert not outcome.passed and outcome.warn
    assert outcome.description.startswith("not tried: vLLM is not installed here.")
    assert outcome.description.endswith(environment.command())


def test_a_model_is_served_once_until_it_changes(root: Path, engine: dict) -> None:
    engine |= {"a-w4": record(), "b-w4": record(products="reference")}
    outcome = served_as_simulated(root, ["a-w4", "b-w4"])
    assert outcome.passed and engine == {}, "both were served"
    assert outcome.description == (
        "vLLM serves 2 models as simulated, 1 of them with products in plain torch, as vLLM has no kernel for them here"
    )
    assert record_path(root, "a-w4").is_file() and not list((root / "data").rglob("serve_check.json"))
    assert served_as_simulated(root, ["a-w4", "b-w4"]) == outcome
    folder = root / "data/quantized_model/b-w4"
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert record_of(root, "b-w4", folder) is None
    engine["b-w4"] = record("failed")
    outcome = served_as_simulated(root, ["a-w4", "b-w4"])
    assert not outcome.passed and not outcome.warn and outcome.description == "b-w4: what was found: failed"


def test_a_missing_kernel_is_a_warning_and_an_engine_that_fails_too(
    root: Path, engine: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine["a-w4"] = record("no kernel")
    outcome = served_as_simulated(root, ["a-w4"])
    assert not outcome.passed and outcome.warn and outcome.metadata["a-w4"].startswith("no kernel (native)")

    def fails(*arguments: Any) -> None:
        raise check.EngineFailed("vLLM did not start")

    monkeypatch.setattr(check, "serve_check", fails)
    outcome = served_as_simulated(root, ["b-w4"])
    assert not outcome.passed and outcome.warn and outcome.description == "not tried: vLLM did not start"


def test_no_model_is_no_success(root: Path) -> None:
    outcome = served_as_simulated(root, [])
    assert not outcome.passed and outcome.warn and "plumbline run" in outcome.description
