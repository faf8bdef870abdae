"""A plan against the folder that the scheme then writes: the same weights, the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.architecture import stored_dtype
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.export import export
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.plan import SchemePlan, plan_of
from tests.helpers.tiny_models import random_llama, tiny_llama

SCHEMES: dict[str, dict[str, Any]] = {
    "groups": {"method": "rtn", "weight_bits": 4, "group_size": 32},
    "channels": {"method": "rtn", "weight_bits": 4},
    "tensor": {"method": "rtn", "weight_bits": 8, "per_tensor": True},
    "three": {"method": "rtn", "weight_bits": 3, "group_size": 64},
    "two-zeros": {"method": "rtn", "weight_bits": 2, "group_size": 4, "symmetric": False},
    "zeros": {"method": "rtn", "weight_bits": 4, "group_size": 4, "symmetric": False},
    "static": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}},
    "static-zero": {"method": "rtn", "weight_bits": 8, "activations": {"symmetric": False}},
    "dynamic": {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}},
    "both-zeros": {"method": "rtn", "weight_bits": 8, "symmetric": False, "activations": {"symmetric": False}},
    "cache": {"method": "rtn", "weight_bits": 4, "kv_cache": {"strategy": "tensor"}},
    "cache-heads": {"method": "rtn", "weight_bits": 4, "kv_cache": {"strategy": "attn_head", "range": "unit"}},
    "ignored": {"method": "rtn", "weight_bits": 4, "ignore": ["lm_head", "re:.*mlp.down_proj"]},
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(torch.bfloat16, tie=False)


def stored(folder: Path) -> tuple[int, int]:
    """Bytes of all tensors, and how many weights have codes, in a folder of packed or 8-bit weights."""
    size = codes = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if name.endswith(".weight_shape"):
            codes += int(tensor.prod())
        elif tensor.dtype == torch.int8 and name.endswith(".weight"):
            codes += tensor.numel()
    return size, codes


@pytest.mark.parametrize("name", SCHEMES)
def test_the_folder_has_the_planned_size(name: str, model: LlamaForCausalLM, tmp_path: Path) -> None:
    scheme = SchemeParams.model_validate(SCHEMES[name])
    plan = plan_of(model, scheme, torch.bfloat16)
    samples = [("a", [1, 5, 9, 44]), ("b", [2, 3, 60, 7, 8])]
    stats = collect(model, samples, StatisticsParams(cache=True), base_model_digest="", fingerprint="")
    (tmp_path / "base").mkdir()
    export(model, apply_scheme(model, stats, scheme, lambda: (samples, None)), scheme, tmp_path / "base", tmp_path)
    assert (plan.bytes, plan.quantized) == stored(tmp_path)
    assert plan.base_bytes == 2 * plan.weights == 2 * sum(p.numel() for p in model.parameters())
    assert plan.bits_per_weight == 8 * plan.bytes / plan.weights


def test_weights_are_counted_by_kind_and_what_is_left_has_a_reason() -> None:
    model = tiny_llama(torch.bfloat16, tie=True)
    scheme = SchemeParams(method="rtn", weight_bits=4, ignore=("lm_head", "re:.*o_proj"))
    plan = plan_of(model, scheme, torch.bfloat16)
    kinds = {row.kind: (row.weights, row.quantized) for row in plan.kinds}
    attention, mlp = 2 * (2 * 64 * 64 + 2 * 32 * 64), 2 * 3 * 64 * 172
    assert kinds == {
        "attention": (attention, attention - 2 * 64 * 64),
        "mlp": (mlp, mlp),
        "embedding": (96 * 64, 0),
        "other": (5 * 64, 0),
    }
    assert [(entry.reason, entry.tensors, entry.weights) for entry in plan.full_precision] == [
        ("the scheme's ignore: re:.*o_proj", 2, 2 * 64 * 64),
        ("embedding: looked up, not multiplied", 1, 96 * 64),
        ("vectors: norms, biases, gains", 5, 5 * 64),
    ]
    assert plan.full_precision[0].example == "model.layers.0.self_attn.o_proj.weight"


def test_a_plan_reads_no_weight() -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8, "num_attention_heads": 32}
    config = MixtralConfig(**sizes, num_local_experts=8)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    plan = plan_of(model, SchemeParams(method="gptq", weight_bits=4, group_size=128), torch.bfloat16)
    weights = {row.kind: row.weights for row in plan.kinds}
    assert weights["experts"] == 8 * 8 * 3 * 4096 * 14336
    assert weights["router"] == 8 * 8 * 4096


def test_group_sizes_are_those_that_fit() -> None:
    model = random_llama(vocab_size=64, hidden_size=64, intermediate_size=96)
    plan = plan_of(model, SchemeParams(method="rtn", weight_bits=4, group_size=64), torch.float32)
    assert dict(plan.group_sizes) == {64: 12, 48: 2}


def test_a_scheme_that_does_not_suit_is_refused_by_the_plan() -> None:
    model = random_llama(vocab_size=64, hidden_size=64, intermediate_size=131)
    with pytest.raises(ValueError, match=r"down_proj: width 131 has no divisor"):
        plan_of(model, SchemeParams(method="rtn", weight_bits=4, group_size=128), torch.float32)


def test_mixed_widths_are_planned_by_their_mean() -> None:
    model = random_llama(vocab_size=64, hidden_size=64, intermediate_size=96)
    scheme = SchemeParams.model_validate({"method": "gptq", "mixed": {"average_bits": 3.5}})
    plan: SchemePlan = plan_of(model, scheme, torch.bfloat16)
    rows = 2 * (64 + 32 + 32 + 64 + 96 + 96 + 64)
    assert plan.bytes == plan.quantized * 3.5 / 8 + 2 * rows + 14 * 16 + 2 * (plan.weights - plan.quantized)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, torch.float16),
        ({}, torch.bfloat16),
    ],
)
def test_the_dtype_is_that_of_config_json(config: dict[str, Any], dtype: torch.dtype) -> None:
    assert stored_dtype(config) == dtype


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config.json: dtype is 'float12', expected a name such as bfloat16"):
        stored_dtype({"dtype": "float12"})
