"""A mixture of experts whose Linears are quantized loads, with its experts as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.quantized_model.export import export
from plumbline.quantized_model.full_precision import experts_in_full_precision
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from tests.helpers.mixtures import make_mixture


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_a_quantized_mixture_loads_with_its_experts_unchanged(kind: str, tmp_path: Path) -> None:
    model = make_mixture(kind, torch.bfloat16)
    base, out = tmp_path / "base", tmp_path / "out"
    model.save_pretrained(base)
    out.mkdir()
    ids = list(range(40))
    stats = collect(model, [("a", ids)], StatisticsParams(), base_model_digest="0" * 64, fingerprint="f")
    scheme = SchemeParams(method="gptq", weight_bits=4)
    quantized = quantize_model(model, stats, scheme)
    assert not any("experts." in name for name in quantized.layers)
    export(model, quantized, scheme, base, out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    experts = experts_in_full_precision(model)
    assert len(experts) == 2
    for name in experts:
        for part in ("gate_up_proj", "down_proj"):
            assert torch.equal(
                loaded.get_parameter(f"{name}.{part}").float(), model.get_parameter(f"{name}.{part}").float()
            )
    with torch.no_grad():
        before, after = (m(input_ids=torch.tensor([ids])).logits.float() for m in (model, loaded))
    assert 0 < float((after - before).norm() / before.norm()) < 0.5
