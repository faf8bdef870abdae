"""Experts that one tensor holds are quantized one by one, and load as they were simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from plumbline.artifact import read_json
from plumbline.base_model.load import load_model
from plumbline.base_model.matrices import matrices, matrix_of
from plumbline.quantized_model.expert_layout import pieces_of_experts
from plumbline.quantized_model.export import export
from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate
from tests.helpers.mixtures import collected, make_mixture
from tests.helpers.quantizing import quantize

IDS = [list(range(start, start + 40)) for start in (0, 5, 9)]
SAMPLES = [(str(number), ids) for number, ids in enumerate(IDS)]
GROUPS: dict[str, Any] = {"weight_bits": 4, "group_size": 8}
SCHEMES: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", **GROUPS},
    "per channel": {"method": "rtn", "weight_bits": 3},
    "gptq": {"method": "gptq", **GROUPS},
    "adaround": {"method": "adaround", **GROUPS},
    "awq": {"method": "rtn", "transform": "awq", **GROUPS},
    "propagated": {"method": "gptq", "propagate": "quantized", **GROUPS},
    "mixed": {"method": "gptq", "group_size": 8, "mixed": {"average_bits": 4}},
    "int8": {"method": "rtn", "weight_bits": 8, "activations": {}},
    "smoothquant": {"method": "rtn", "weight_bits": 8, "activations": {}, "transform": "smoothquant"},
    "dynamic": {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}},
}


def folder_of(kind: str, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    make_mixture(kind, torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    folders = {kind: folder_of(kind, tmp_path_factory.mktemp(kind)) for kind in ("mixtral", "qwen2_moe", "gpt_oss")}
    return {kind: (folder, load_model(folder)) for kind, folder in folders.items()}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_every_scheme_quantizes_all_experts_and_loads_equal(kind, name, loaded, tmp_path) -> None:
    base, model = loaded[kind]
    scheme = SchemeParams.model_validate(SCHEMES[name])
    quantized = quantize(model, collected(model, SAMPLES), scheme, SAMPLES)
    experts = {name for name, matrix in matrices(model).items() if matrix.expert is not None}
    assert len(experts) == 24 and experts <= set(quantized.layers)
    export(model, quantized, scheme, base, tmp_path)
    assert require_loads(tmp_path, model, quantized, scheme, IDS[0]) == {"tokens": 40}


def test_the_simulation_multiplies_with_the_dequantized_slices(loaded) -> None:
    _, model = loaded["mixtral"]
    scheme = SchemeParams.model_validate(SCHEMES["gptq"])
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    simulated = simulate(model, quantized, scheme)
    for name, matrix in matrices(model).items():
        if name in quantized.layers:
            assert torch.equal(matrix_of(simulated, name).weight, dequantize(quantized.layers[name].weight)), name
            assert not torch.equal(matrix_of(simulated, name).weight, matrix.weight), name


def test_a_checkpoint_holds_every_expert_under_its_own_name(loaded, tmp_path) -> None:
    base, model = loaded["mixtral"]
    scheme = SchemeParams.model_validate(SCHEMES["gptq"])
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    export(model, quantized, scheme, base, tmp_path)
    with safe_open(base / "model.safetensors", "pt") as file:
        expected = {key.removesuffix(".weight") for key in file.keys() if ".experts." in key}  # noqa: SIM118
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = {key.removesuffix(".weight_packed") for key in file.keys() if key.endswith("weight_packed")}  # noqa: SIM118
    assert len(expected) == 2 * 6 * 3 and expected <= stored
    ignore = read_json(tmp_path / "config.json")["quantization_config"]["ignore"]
    assert "model.layers.0.mlp.gate" in ignore  # the router, which is no Linear here and one in engines


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_pieces_hold_all_rows_of_every_expert_once(kind) -> None:
    """Against the checkpoint that transformers writes: each of its tensors is the rows that the piece names."""
    model = make_mixture(kind)
    owner = next(name for name, module in model.named_modules() if name.endswith("experts"))
    pieces = pieces_of_experts(model, owner)
    rows: dict[str, list[int]] = {}
    for piece in pieces:
        rows.setdefault(piece.matrix, []).extend(piece.rows.tolist())
    expected = {name: list(range(m.out_features)) for name, m in matrices(model).items() if m.owner == owner}
    assert {name: sorted(found) for name, found in rows.items()} == expected


def test_pieces_are_what_a_checkpoint_holds(tmp_path) -> None:
    model = make_mixture("mixtral")
    model.save_pretrained(tmp_path)
    pieces = pieces_of_experts(model, "model.layers.1.mlp.experts")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for piece in pieces:
            weight = matrix_of(model, piece.matrix).weight[piece.rows]
            assert torch.equal(file.get_tensor(f"{piece.name}.weight"), weight), piece.name


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("gpt_oss", {"method": "rtn", "weight_bits": 4}, "all experts of a layer in one tensor"),
        ("mixtral", {"method": "rtn", "weight_bits": 4, "symmetric": False}, "drops the zero points of experts"),
        ("mixtral", {"method": "rtn", "ignore": ["re:.*experts[.]3[.].*"]}, "some experts and not others"),
    ],
)
def test_what_transformers_cannot_read_is_refused_before_work(kind, entry, message, loaded, monkeypatch) -> None:
    _, model = loaded[kind]
    stats = collected(model, SAMPLES)
    monkeypatch.setattr("plumbline.quantized_model.quantize.in_parallel", None)
    with pytest.raises(ValueError, match=message) as error:
        quantize_model(model, stats, SchemeParams.model_validate(entry))
    assert "full_precision" in str(error.value)


def test_experts_can_be_left_alone(loaded, tmp_path) -> None:
    base, model = loaded["gpt_oss"]
    scheme = SchemeParams.model_validate({"method": "rtn", "weight_bits": 4, "experts": "full_precision"})
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    assert not any(".experts." in name for name in quantized.layers)
    export(model, quantized, scheme, base, tmp_path)
    assert require_loads(tmp_path, model, quantized, scheme, IDS[0]) == {"tokens": 40}


def test_an_expert_under_the_floor_is_rounded_to_nearest_and_named(loaded) -> None:
    _, model = loaded["mixtral"]
    stats = collected(model, SAMPLES)
    entry = SCHEMES["gptq"] | {"expert_floor": 1.0}
    layers = quantize_model(model, stats, SchemeParams.model_validate(entry)).layers
    tokens = {name: site.tokens for site in stats.sites.values() for name in site.members}
    under = {n for n, m in matrices(model).items() if m.expert is not None and tokens.get(n, 0) < m.in_features}
    assert 0 < len(under) < 24
    assert {name for name, layer in layers.items() if layer.fallback} == under


def test_the_check_names_what_differs(loaded, tmp_path) -> None:
    base, model = loaded["mixtral"]
    scheme = SchemeParams.model_validate(SCHEMES["rtn"])
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    export(model, quantized, scheme, base, tmp_path)
    first = "model.layers.0.self_attn.o_proj"
    quantized.layers[first].weight.codes[0, 0] ^= 1
    with pytest.raises(ValueError, match=f"weights that differ: {first}.weight"):
        require_loads(tmp_path, model, quantized, scheme, IDS[0])


def test_a_folder_that_does_not_load_is_no_success(loaded, tmp_path) -> None:
    base, model = loaded["mixtral"]
    scheme = SchemeParams.model_validate(SCHEMES["rtn"])
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    export(model, quantized, scheme, base, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="does not load in transformers"):
        require_loads(tmp_path, model, quantized, scheme, IDS[0])


def test_a_model_loaded_by_its_auto_class_is_the_same(loaded, tmp_path) -> None:
    base, model = loaded["qwen2_moe"]
    scheme = SchemeParams.model_validate(SCHEMES["gptq"])
    quantized = quantize_model(model, collected(model, SAMPLES), scheme)
    export(model, quantized, scheme, base, tmp_path)
    with torch.no_grad():
        x = torch.tensor(IDS[:1])
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=x).logits
        assert torch.equal(found, simulate(model, quantized, scheme)(input_ids=x).logits)
