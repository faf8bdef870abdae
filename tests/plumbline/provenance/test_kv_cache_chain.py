"""A model with an FP8 cache through the stages: built, described, evaluated as it is served, and audited."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from plumbline.artifact import read_json
from plumbline.evaluation.build import build_evaluation
from plumbline.evaluation.params import EvaluationParams
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.params import SchemeParams
from tests.helpers.checkpoint import checkpoint
from tests.helpers.small_chain import MODEL, SET, STATS, chain, run

ATTENTION = "model.layers.0.self_attn"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain(tmp_path_factory.mktemp("kv") / "workspace", "random", {"strategy": "attn_head"})


def test_the_record_names_scales_and_layers(root: Path) -> None:
    record = read_json(root / MODEL / "calibration.json")
    stored = load_file(root / MODEL / "model.safetensors")
    assert record["kv_cache"] == {
        ATTENTION: {part: stored[f"{ATTENTION}.{part}_scale"].flatten().tolist() for part in "kv"}
    }
    assert record["coverage"]["cache"] == {"modules": 1, "windows": {}, "without": {}}
    assert record["scheme"]["kv_cache"]["strategy"] == "attn_head"
    card = (root / MODEL / "README.md").read_text(encoding="utf-8")
    assert "Keys and values cached in FP8 (E4M3), one scale per head each, for the whole range" in card
    assert "--kv-cache-dtype fp8" in card


def test_the_evaluation_measures_the_cache(root: Path, tmp_path: Path) -> None:
    """Against the same weights without it, and with scales that engines take where a checkpoint has none."""
    samples, base, kl = root / "data/tokenized_samples", checkpoint("base", root), set()
    for name, kv_cache in (("plain", None), ("calibrated", {"strategy": "attn_head"}), ("unit", {"range": "unit"})):
        scheme = SchemeParams.model_validate(
            {"method": "rtn", "weight_bits": 4, "group_size": 32, "kv_cache": kv_cache}
        )
        for folder in ("model", "evaluation"):
            (tmp_path / name / folder).mkdir(parents=True)
        build_quantized_model("s", scheme, base, root / STATS, root / SET, tmp_path / name / "model")
        build_evaluation(EvaluationParams(), base, tmp_path / name / "model", samples, tmp_path / name / "evaluation")
        kl.add(read_json(tmp_path / name / "evaluation/metrics.json")["kl_mean"])
    assert len(kl) == 3


def test_the_audit_verifies_it_and_sees_a_changed_scale(root: Path) -> None:
    assert run(root, "audit", MODEL).exit_code == 0, run(root, "audit", MODEL).output
    header = read_json(root / STATS / "header.json")
    assert f"{ATTENTION}:k" in header["sites"] and header["settings"]["cache"] is True
    path = root / MODEL / "model.safetensors"
    before, stored = path.read_bytes(), load_file(path)
    stored[f"{ATTENTION}.k_scale"] = stored[f"{ATTENTION}.k_scale"] * 2
    try:
        save_file(stored, path, metadata={"format": "pt"})
        result = run(root, "audit", MODEL)
        assert result.exit_code != 0 and "tampered" in result.output.lower()
    finally:
        path.write_bytes(before)
