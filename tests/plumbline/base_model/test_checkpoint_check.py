"""A damaged or foreign checkpoint is refused with folder, file and remedy, in both ways of loading."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM

from plumbline.api import collect, export, quantize
from plumbline.base_model.checkpoint_check import unloaded_tensors
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.params import SchemeParams
from tests.helpers.multimodal import multimodal_model
from tests.helpers.tiny_models import random_llama

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


def streamed(folder: Path) -> None:
    model = StreamedModel(folder, "cpu")
    with model.present(lambda name: True):
        pass


WAYS: dict[str, Callable[[Path], object]] = {"whole": lambda folder: load_model(folder, "cpu"), "streamed": streamed}


@pytest.fixture(params=WAYS)
def load(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    llama = random_llama(**SIZES)
    llama.save_pretrained(folder / "llama")
    llama.save_pretrained(folder / "sharded", max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "llama", tmp_path / "llama"))


@pytest.fixture
def sharded(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "sharded", tmp_path / "sharded"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, **changes: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | changes, folder / "model.safetensors", {"format": "pt"})


def refused(load: Callable[[Path], object], folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_sound_checkpoint_is_loaded_and_nothing_of_it_is_left(load: Any, folder: Path, sharded: Path) -> None:
    for sound in (folder, sharded):
        load(sound)
        assert unloaded_tensors(sound, load_model(sound, "cpu")) == {}


def test_a_shortened_config_is_refused(load: Any, folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)
    refused(load, folder, r"hold 9 weights .* first 'model\.layers\.1\..*' \(config.json: 1 layers, the weights: 2\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_a_weight_of_integers_is_refused(load: Any, folder: Path, dtype: torch.dtype) -> None:
    """It is one of a quantized checkpoint; without its scales, transformers takes the integers for the weights."""
    edit_weights(folder, **{UP: load_file(folder / "model.safetensors")[UP].to(dtype)})
    refused(load, folder, rf"{re.escape(UP)} is stored as \w+, expected floating-point numbers")


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 0}, {"num_hidden_layers": "2"}, {"hidden_act": "zzz"}, {"dtype": "float13"}]
)
def test_a_config_of_impossible_values_is_refused(load: Any, folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    refused(load, folder, r"config\.json")


def test_a_left_over_weight_is_refused(load: Any, folder: Path) -> None:
    edit_weights(folder, **{"model.layers.1.mlp.extra_proj.weight": torch.ones(2, 2)})
    refused(load, folder, r"hold 1 weights .* first 'model\.layers\.1\.mlp\.extra_proj\.weight'; the model would run")


def test_a_weight_of_another_shape_is_refused(load: Any, folder: Path) -> None:
    edit_weights(folder, **{UP: torch.ones(47, 32)})
    refused(load, folder, rf"llama: {UP} is \(47, 32\) in the safetensors, config.json calls for \(48, 32\)")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_named(load: Any, folder: Path, name: str, value: float) -> None:
    weight = load_file(folder / "model.safetensors")[name]
    position = (3,) if weight.dim() == 1 else (3, 5)
    weight[position] = value
    edit_weights(folder, **{name: weight})
    refused(load, folder, re.escape(f"llama/model.safetensors: {name} holds {value} at {position}"))


def test_the_expert_that_is_not_finite_is_named(load: Any, tmp_path: Path) -> None:
    MixtralForCausalLM(MixtralConfig(**SIZES, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                                     num_local_experts=4)).save_pretrained(tmp_path)  # fmt: skip
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"  # merged with the other experts in the model
    weight = load_file(tmp_path / "model.safetensors")[name]
    edit_weights(tmp_path, **{name: weight.index_fill(0, torch.tensor([4]), torch.nan)})
    refused(load, tmp_path, rf"{name} holds nan at \(4, 0\)")
    weights = load_file(tmp_path / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(load, tmp_path, "one of several experts is missing")


def test_the_infinite_scale_of_a_quantized_model_is_named(tmp_path: Path) -> None:
    random_llama(**SIZES).save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", "cpu")
    scheme = SchemeParams(method="rtn", weight_bits=4, group_size=16)
    export(base, quantize(base, collect(base, [[1, 2, 3]]), scheme), scheme, tmp_path / "base", tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    scale = load_file(tmp_path / "out" / "model.safetensors")[name]
    scale[7, 1] = torch.inf
    edit_weights(tmp_path / "out", **{name: scale})
    refused(lambda folder: load_model(folder, "cpu"), tmp_path / "out", rf"{name} holds inf at \(7, 1\)")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named(load: Any, sharded: Path, kept: int) -> None:
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[: kept if kept >= 0 else -1])
    refused(load, sharded, rf"sharded/{file.name}: .*(too short|its header describes).*fetch it again")


def test_what_is_no_safetensors_file_is_named(load: Any, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"version https://git-lfs")
    refused(load, folder, r"llama/model\.safetensors: its header is not that of a safetensors file")


@pytest.mark.parametrize("target", ["../llama/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_that_points_out_of_the_folder_is_refused(load: Any, sharded: Path, target: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][UP] = target
    (sharded / INDEX).write_text(json.dumps(index))
    refused(load, sharded, rf"sharded/{INDEX}: {UP} is in '{target}', expected the name of a safetensors file")


def test_an_index_of_another_download_is_refused(load: Any, sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"][UP])
    (sharded / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], UP: other}}))
    refused(load, sharded, rf"sharded/{other}: no tensor {UP}, which {INDEX} places there")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], UP: "model-9.safetensors"}}))
    refused(load, sharded, f"{INDEX} names model-9.safetensors, which is not there")
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        (sharded / INDEX).write_text(text)
        refused(load, sharded, f"sharded/{INDEX}: ")


def test_two_files_with_one_tensor_are_refused(load: Any, sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, weight = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: weight}, second, {"format": "pt"})
    refused(load, sharded, f"both {first.name} and {second.name} hold {name}")


def test_a_file_beside_the_model_is_named(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    reasons = unloaded_tensors(folder, load_model(folder, "cpu"))
    assert list(reasons) == ["consolidated.safetensors"] and "does not read this file" in reasons.popitem()[1]


def test_what_transformers_leaves_out_on_purpose_is_named(load: Any, tmp_path: Path) -> None:
    config = DeepseekV3Config(
        **SIZES, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, first_k_dense_replace=1,
        n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=1, moe_intermediate_size=16, kv_lora_rank=8,
        q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1,
        num_nextn_predict_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    further = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in stored.items() if "layers.1." in k}
    known = {"model.layers.61.x.weight": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit_weights(tmp_path, **further, **known)
    load(tmp_path)
    reasons = unloaded_tensors(tmp_path, load_model(tmp_path, "cpu"))
    assert reasons.keys() == further.keys() | known.keys()
    assert {reasons[name] for name in further} == {
        "a layer for predicting further tokens, which DeepseekV3ForCausalLM of transformers does not build"
    }
    assert "pattern" in reasons["model.layers.61.x.weight"]
    assert "computes it itself" in reasons["model.layers.0.self_attn.rotary_emb.inv_freq"]
    edit_config(tmp_path, num_nextn_predict_layers=0)
    refused(load, tmp_path, r"first 'model\.layers\.2\..*config.json: 2 layers, the weights: 3")


def test_a_text_class_that_leaves_the_vision_weights_out_names_them(tmp_path: Path) -> None:
    model = multimodal_model("qwen3.5")
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["Qwen3_5ForCausalLM"])
    reasons = unloaded_tensors(tmp_path, load_model(tmp_path, "cpu"))
    vision = {name for name in load_file(tmp_path / "model.safetensors") if "visual" in name}
    assert vision and reasons.keys() == vision
