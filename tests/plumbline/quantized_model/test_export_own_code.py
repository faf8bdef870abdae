"""A base model with code of its own: trusted only where params.yaml says so, and exported with its code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.artifact import read_json, sha256_file
from plumbline.base_model.architecture import skeleton
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel
from plumbline.evaluation.checks import checked_weights
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.export import export
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate
from plumbline.quantized_model.summary import summary
from tests.helpers.checkpoint import checkpoint
from tests.helpers.own_code import AUTO_MAP, make_own_model
from tests.helpers.written_set import write_set


@pytest.fixture(autouse=True)
def _modules_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies remote code into a cache of the user; here into this test's folder."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield


def test_the_code_travels_with_the_model(tmp_path: Path) -> None:
    folder, out = make_own_model(tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    base = load_model(folder, "cpu", trust_remote_code=True)
    assert type(base).__name__ == "OwnModel"
    assert type(StreamedModel(folder, "cpu", trust_remote_code=True).model).__name__ == "OwnModel"
    stats = collect(base, [("s", [1, 2, 3])], StatisticsParams(), base_model_digest="d", fingerprint="f")
    scheme = SchemeParams(method="rtn", weight_bits=4, group_size=16)
    quantized = quantize_model(base, stats, scheme)
    export(base, quantized, scheme, folder, out)

    code = sorted(path.name for path in folder.glob("*.py"))
    assert len(code) == 4 and sorted(path.name for path in out.glob("*.py")) == code
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in code)
    assert json.loads((out / "config.json").read_text())["auto_map"] == AUTO_MAP
    loaded, tokens = load_model(out, "cpu", trust_remote_code=True), torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, simulate(base, quantized, scheme)(tokens).logits)


def test_the_code_is_on_record_and_changed_code_is_not_evaluated(tmp_path: Path) -> None:
    make_own_model(tmp_path / "base")
    write_set(tmp_path / "set", vocabulary=50)
    for name in ("stats", "out"):
        (tmp_path / name).mkdir()
    base = checkpoint("base", tmp_path, trust_remote_code=True)
    build_activation_stats(StatisticsParams(), base, tmp_path / "set", tmp_path / "stats")
    scheme = SchemeParams(method="rtn", weight_bits=4, group_size=16)
    build_quantized_model("w4", scheme, base, tmp_path / "stats", tmp_path / "set", tmp_path / "out")
    record = read_json(tmp_path / "out" / "calibration.json")
    code = {path.name: sha256_file(path) for path in (tmp_path / "base").glob("*.py")}
    assert {name: digest for name, digest in record["model"].items() if name.endswith(".py")} == code
    assert summary(tmp_path / "out")["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert checked_weights(tmp_path / "out", record) == record["model"]
    (tmp_path / "out" / "helper_own.py").write_text("FACTOR = 2.0\n")
    with pytest.raises(ValueError, match=r"helper_own\.py is not what calibration\.json says"):
        checked_weights(tmp_path / "out", record)


def test_its_code_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    folder = make_own_model(tmp_path / "base")
    for use in (skeleton, load_model, StreamedModel):
        with pytest.raises(ValueError, match=r"base: config.json names code of its own .*trust_remote_code: true"):
            use(folder)


def test_code_of_another_repository_is_refused(tmp_path: Path) -> None:
    folder = make_own_model(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "somebody/else--modeling_own.OwnModel"
    (folder / "config.json").write_text(json.dumps(config))
    for use in (skeleton, load_model, StreamedModel):
        with pytest.raises(ValueError, match="names 'somebody/else--modeling_own.OwnModel' for AutoModelForCausalLM"):
            use(folder, trust_remote_code=True)
