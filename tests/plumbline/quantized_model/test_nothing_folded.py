"""A transform that can fold nothing into a model says so where people look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, Gemma4TextConfig, LlamaConfig

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {
    **SIZES, "sliding_window": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
GEMMA_3N = {**GEMMA, "altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}
SHARED = "its last 2 of 4 layers (num_kv_shared_layers in config.json) attend to keys and values"
SCHEMES = {
    "awq": SchemeParams(method="rtn", weight_bits=4, group_size=16, transform="awq"),
    "smoothquant": SchemeParams.model_validate(
        {"method": "rtn", "weight_bits": 8, "transform": "smoothquant", "activations": {"range": "minmax"}}
    ),
}


def quantized(config: Any, scheme: SchemeParams) -> tuple[Quantized, int]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    samples = [(f"s{i}", torch.randint(1, 50, (16,)).tolist()) for i in range(3)]
    stats = collect(model, samples, StatisticsParams(), base_model_digest="d", fingerprint="f")
    result = quantize_model(model, stats, scheme)
    read = {site for site, values in stats.sites.items() if any(member in result.layers for member in values.members)}
    return result, len(read)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    "config",
    [Gemma3nTextConfig(**GEMMA_3N, num_kv_shared_layers=2), Gemma4TextConfig(**GEMMA, num_kv_shared_layers=2)],
    ids=["gemma3n", "gemma4"],
)
def test_layers_that_share_keys_and_values_are_left_unscaled_in_so_many_words(config: Any, name: str) -> None:
    result, sites = quantized(config, SCHEMES[name])
    [remark] = result.notes["remarks"]
    assert remark.startswith(f"{name} folded no scale into this model ({sites} of {sites} sites: ") and SHARED in remark
    unfolded = result.notes["transform"]["unfolded"]
    assert len(unfolded) == sites and all(SHARED in reason for reason in unfolded.values())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES), Gemma4TextConfig(**GEMMA, num_kv_shared_layers=0)], ids=["llama", "gemma4"]
)
def test_a_model_that_scales_fold_into_gets_no_remark(config: Any, name: str) -> None:
    result, sites = quantized(config, SCHEMES[name])
    assert "remarks" not in result.notes
    assert 0 < len(result.notes["transform"]["sites"]) <= sites
