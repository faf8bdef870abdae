"""All steps of a mixture whose experts are loaded some at a time, against the model in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor
from transformers import Qwen3MoeConfig

from plumbline.base_model import large_mixture
from plumbline.base_model.grouped_products import GroupedProducts
from tests.helpers.model_steps import STEPS, Steps, files, write_inputs

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}


def test_every_step_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path, Qwen3MoeConfig, SIZES)
    whole, layerwise = Steps(tmp_path, "whole"), Steps(tmp_path, "layerwise")
    for step in STEPS:
        getattr(whole, step)()
    multiply, groups = GroupedProducts.multiply, list[range]()

    def noted(products: GroupedProducts, experts: range, weights: Tensor) -> None:
        groups.append(experts)
        multiply(products, experts, weights)

    monkeypatch.setattr(GroupedProducts, "multiply", noted)
    monkeypatch.setattr(large_mixture, "LARGE", 0)
    monkeypatch.setattr(large_mixture, "AT_A_TIME", 3 * 3 * 64 * 64 * 2)
    models = {"statistics": 1, "quantization": 2, "evaluation": 2}  # simulated and loaded again; base and quantized
    for step in STEPS:
        groups.clear()
        getattr(layerwise, step)()
        assert files(layerwise.out(step)) == files(whole.out(step)), step
        assert groups == models[step] * 2 * 2 * [range(3), range(3, 6), range(6, 8)]  # layers, products
