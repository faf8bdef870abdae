"""The simulated model shares no memory with the base model, and the reported errors decide nothing."""

from __future__ import annotations

import pytest
import torch

from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate

SCHEMES = {
    "gptq": {"method": "gptq", "weight_bits": 3, "group_size": 32, "act_order": True},
    "awq": {"method": "rtn", "weight_bits": 3, "group_size": 32, "transform": "awq"},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_simulated_model_is_a_copy(name, llama, stats):
    scheme = SchemeParams.model_validate(SCHEMES[name])
    before = {key: value.clone() for key, value in llama.state_dict().items()}
    quantized = quantize_model(llama, stats, scheme)
    simulated = simulate(llama, quantized, scheme)
    ours = {parameter.data_ptr() for parameter in llama.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in simulated.parameters())
    for key, value in simulated.state_dict().items():
        layer = quantized.layers.get(key.removesuffix(".weight"))
        expected = quantized.parameters.get(key, before[key]) if layer is None else dequantize(layer.weight)
        assert torch.equal(value, expected) and value.dtype == before[key].dtype
    for (key, base), (_, copied) in zip(llama.named_parameters(), simulated.named_parameters(), strict=True):
        assert torch.equal(base, before[key]) and base.requires_grad == copied.requires_grad


@pytest.mark.parametrize("name", SCHEMES)
def test_errors_can_be_left_out(name, llama, stats):
    scheme = SchemeParams.model_validate(SCHEMES[name])
    quantized = quantize_model(llama, stats, scheme)
    without = quantize_model(llama, stats, scheme, errors=False)
    for key, layer in quantized.layers.items():
        assert layer.error is not None and without.layers[key].error is None
        assert torch.equal(layer.weight.codes, without.layers[key].weight.codes)
        assert torch.equal(layer.weight.scale, without.layers[key].weight.scale)
