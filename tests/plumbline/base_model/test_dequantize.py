"""Quantized checkpoints as base models: refused with the reason, or dequantized exactly where params.yaml asks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.checkpoint_check import unloaded_tensors
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.export import export
from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from tests.helpers.checkpoint import checkpoint
from tests.helpers.quantized_checkpoints import set_quantization, to_fp8, to_mxfp4
from tests.helpers.tiny_models import make_base_model, random_llama

MOE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip


def llama(folder: Path) -> Path:
    """Widths that 128 does not divide: 192 = 128 + 64, which two equal blocks would divide, too, and 136 = 128 + 8."""
    model = random_llama(vocab_size=50, hidden_size=192, intermediate_size=136, num_hidden_layers=1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def dequantized(folder: Path) -> PreTrainedModel:
    """The model, after checking that it is the same layer by layer and is saved as one that was never quantized."""
    model = load_model(folder, "cpu", dequantize=True)
    state = model.state_dict()
    assert all(weight.dtype == torch.bfloat16 for weight in state.values())
    streamed = StreamedModel(folder, "cpu", dequantize=True)
    with streamed.present(lambda name: True):
        found = streamed.model.state_dict()
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    saved = folder.parent / f"{folder.name}-saved"
    model.save_pretrained(saved)
    again = load_model(saved, "cpu").state_dict()  # refuses what an ordinary checkpoint does not hold
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert (
        not hasattr(model.config, "quantization_config") and "quantization" not in (saved / "config.json").read_text()
    )
    assert {t.dtype for t in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    return model


@pytest.mark.parametrize("block", [128, 32, None])
def test_fp8_is_dequantized_block_by_block(tmp_path: Path, block: int | None) -> None:
    folder = llama(tmp_path / "fp8")
    kept = load_file(folder / "model.safetensors")
    expected = to_fp8(folder, block)
    assert len(expected) == 7
    change(folder, {name: kept[name].float() for name in ("model.norm.weight", "lm_head.weight")})  # beside bfloat16
    state = dequantized(folder).state_dict()
    for name, weight in {**kept, **expected}.items():
        assert torch.equal(state[name], weight), name
    assert unloaded_tensors(folder, load_model(folder, "cpu", dequantize=True)) == {}


def test_experts_in_fp8_are_dequantized_before_they_are_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**MOE)).to(torch.bfloat16).save_pretrained(tmp_path / "moe")
    expected = to_fp8(tmp_path / "moe", 48)
    model = dequantized(tmp_path / "moe")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    for number in range(3):
        w1, w3, w2 = (
            expected[f"model.layers.0.block_sparse_moe.experts.{number}.{part}.weight"] for part in ("w1", "w3", "w2")
        )
        assert torch.equal(experts.gate_up_proj[number], torch.cat([w1, w3]))
        assert torch.equal(experts.down_proj[number], w2)


def test_mxfp4_is_dequantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(**MOE, layer_types=["full_attention"])
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "mxfp4")
    expected = to_mxfp4(tmp_path / "mxfp4")
    state = dequantized(tmp_path / "mxfp4").state_dict()
    assert len(expected) == 2 and all(torch.equal(state[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    "scheme",
    [
        {"weight_bits": 4, "group_size": 8},
        {"weight_bits": 3},
        {"weight_bits": 4, "group_size": 8, "symmetric": False},
        {"weight_bits": 8, "activations": {"range": "minmax"}},
    ],
    ids=str,
)
def test_our_own_export_is_dequantized(tmp_path: Path, scheme: dict[str, Any]) -> None:
    params = SchemeParams.model_validate({"method": "rtn", **scheme})
    folder, weights = exported(tmp_path, params)
    model = dequantized(folder)
    state = model.state_dict()
    assert all(torch.equal(state[f"{name}.weight"], weight.to(torch.bfloat16)) for name, weight in weights.items())
    left = unloaded_tensors(folder, model)
    scales = {f"{name}.input_scale" for name in weights} if params.activations else set()
    assert left.keys() == scales and all("scale of activations" in reason for reason in left.values())


def exported(tmp_path: Path, scheme: SchemeParams) -> tuple[Path, dict[str, Tensor]]:
    base_folder = make_base_model(tmp_path / "base", "bfloat16")
    base = load_model(base_folder, "cpu")
    stats = collect(base, [("s", [1, 2, 3])], StatisticsParams(), base_model_digest="d", fingerprint="f")
    quantized = quantize_model(base, stats, scheme)
    (tmp_path / "quantized").mkdir()
    export(base, quantized, scheme, base_folder, tmp_path / "quantized")
    return tmp_path / "quantized", {name: dequantize(layer.weight) for name, layer in quantized.layers.items()}


def test_what_is_dequantized_wrongly_is_refused(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, SchemeParams(method="rtn", weight_bits=4, group_size=8))
    group = {"weights": {"num_bits": 4, "group_size": 8}, "targets": ["Linear"]}
    other = {"weights": {"num_bits": 8, "group_size": 8}, "targets": ["re:.*down_proj"]}
    config: dict[str, Any] = {"quant_method": "compressed-tensors", "config_groups": {"a": group, "b": other}}
    set_quantization(folder, config)
    refused(folder, "several config_groups, of which transformers 5.23 dequantizes only the first correctly")
    set_quantization(folder, {**config, "config_groups": {"a": group}})
    name = "model.layers.0.mlp.up_proj"
    change(folder, {f"{name}.weight_g_idx": torch.zeros(32, dtype=torch.int32)})
    refused(folder, f"{name}.weight_g_idx: transformers does not dequantize weights whose groups are in another order")
    change(folder, {}, f"{name}.weight_g_idx", f"{name}.weight_scale")
    refused(folder, f"no {name}.weight_scale for {name}.weight_packed")


def test_a_scale_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "fp8")
    to_fp8(folder)
    scale = "model.layers.0.mlp.up_proj.weight_scale_inv"
    change(folder, {scale: torch.ones(1, 1)})
    refused(
        folder, rf"{scale} is F32 \[1, 1\]; for a weight of \[136, 192\] in blocks of \[128, 128\] expected .* \[2, 2\]"
    )
    change(folder, {scale: torch.full((2, 2), torch.inf)})
    refused(folder, rf"{scale} holds inf at \(0, 0\)")
    change(folder, {}, scale)
    refused(folder, f"model.layers.0.mlp.up_proj.weight is in FP8, but there is no {scale}")
    shutil.copytree(folder, tmp_path / "short")
    change(tmp_path / "short", {scale: torch.ones(2, 2)}, "model.layers.0.mlp.up_proj.weight")
    refused(tmp_path / "short", "hold 1 weights|lack 1 weights")


def change(folder: Path, tensors: dict[str, Tensor], *removed: str) -> None:
    stored = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in removed}
    save_file(stored | tensors, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path, message: str) -> None:
    def stream() -> None:
        with StreamedModel(folder, "cpu", dequantize=True).present(lambda name: True):
            pass

    for use in (lambda: load_model(folder, "cpu", dequantize=True), stream):
        with pytest.raises(ValueError, match=message):
            use()


USES = ("digest", "tokenizer", "skeleton", "streamed", "load", "loaded")


@pytest.mark.parametrize("use", USES)
def test_a_quantized_base_is_refused_before_any_work(tmp_path: Path, use: str) -> None:
    folder = make_base_model(tmp_path / "base", "bfloat16")
    to_fp8(folder, 32)
    with pytest.raises(ValueError, match=r"base: its weights are quantized \(.*: fp8\).*`model: \{dequantize: true\}`"):
        getattr(checkpoint("base", tmp_path), use)()
    getattr(checkpoint("base", tmp_path, dequantize=True), use)()


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "modelopt", "fbgemm_fp8", None])
@pytest.mark.parametrize("dequantize", [False, True])
def test_what_cannot_be_dequantized_says_so(tmp_path: Path, method: str | None, dequantize: bool) -> None:
    folder = make_base_model(tmp_path / "base", "bfloat16")
    set_quantization(folder, {"quant_method": method, "bits": 4})
    with pytest.raises(ValueError, match=rf"{method or 'unnamed'}\), and only fp8, mxfp4, compressed-tensors can be"):
        checkpoint("base", tmp_path, dequantize=dequantize).digest()


def test_model_optimizer_and_a_quantized_text_part_are_seen(tmp_path: Path) -> None:
    folder = make_base_model(tmp_path / "base", "bfloat16")
    (folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"modelopt\), and only"):
        checkpoint("base", tmp_path).digest()
    (folder / "hf_quant_config.json").unlink()
    (folder / "config.json").write_text('{"text_config": {"quantization_config": {"quant_method": "gptq"}}}')
    with pytest.raises(ValueError, match=r"gptq\), and only"):
        checkpoint("base", tmp_path).digest()


def test_the_record_says_that_the_base_was_dequantized(tmp_path: Path) -> None:
    folder = make_base_model(tmp_path / "base", "bfloat16")
    assert checkpoint("base", tmp_path).origin() == {"name": "base", "revision": None}
    with pytest.raises(ValueError, match=r"dequantize in params.yaml: found true, but config.json of base has no"):
        checkpoint("base", tmp_path, dequantize=True).digest()
    to_fp8(folder, 32)
    base = checkpoint("base", tmp_path, dequantize=True)
    assert base.origin() == {"name": "base", "revision": None, "dequantized_from": "fp8"}
