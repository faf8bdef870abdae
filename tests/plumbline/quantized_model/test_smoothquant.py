"""SmoothQuant against its formula, and on a model with outlier channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from plumbline.quantized_model.folding import Fold
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.scheme import quantizable_linears
from plumbline.quantized_model.simulate import simulate
from plumbline.quantized_model.smoothquant import smoothing_scale, smoothquant

W8A8 = {"method": "rtn", "weight_bits": 8, "activations": {}}
OUTLIERS = [3, 17, 40]


def smooth(**changes: Any) -> SchemeParams:
    return SchemeParams.model_validate(W8A8 | {"transform": "smoothquant"} | changes)


@pytest.fixture(scope="module")
def spiky(make_llama) -> LlamaForCausalLM:
    """Three channels that come out of every norm 60 times as large and meet weights as much smaller: the same model."""
    model = make_llama(torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[OUTLIERS] *= 60
                for reader in readers:
                    reader.weight[:, OUTLIERS] /= 60
    return model


@pytest.fixture(scope="module")
def spiky_stats(spiky, tokens, make_stats):
    return make_stats(spiky, tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_scales_are_those_of_the_formula_on_raw_activations(spiky, spiky_stats, tokens, see, alpha: float) -> None:
    scheme = smooth(smoothing=alpha)
    linears = quantizable_linears(spiky, scheme.ignore)
    found = smoothquant(spiky, linears, spiky_stats, scheme)
    x = see(spiky, tokens)
    assert sorted(found.scales) == sorted(spiky_stats.sites)
    for site, s in found.scales.items():
        X = np.abs(x[site].x.numpy()).max(0)
        # rows are scaled by a later site, columns only by this one: the base model's weights are those of the formula
        W = np.max(
            [np.abs(linears[m].weight.detach().double().numpy()).max(0) for m in spiky_stats.sites[site].members], 0
        )
        if site.endswith("o_proj"):  # heads 0 and 1, and 2 and 3, come from one row of v each
            X, W = (y.reshape(2, 2, 16).max(1, keepdims=True).repeat(2, 1).reshape(-1) for y in (X, W))
        np.testing.assert_allclose(s.numpy(), X**alpha / W ** (1 - alpha), rtol=1e-5)


def test_the_range_of_the_result_is_the_geometric_mean(spiky, spiky_stats) -> None:
    """At alpha = 1/2 every channel of the activations ranges as far as that of the weights: the paper's equation 4."""
    scheme = smooth()
    found = smoothquant(spiky, quantizable_linears(spiky, scheme.ignore), spiky_stats, scheme)
    site = spiky_stats.sites["model.layers.0.mlp.gate_proj"]
    s = found.scales["model.layers.0.mlp.gate_proj"]
    up_and_gate = [found.weights[m] for m in site.members]
    smoothed = torch.maximum(-site.min, site.max) / s
    # the rows of up are also divided, by the scale of down's input
    up_and_gate[1] = up_and_gate[1] * found.scales["model.layers.0.mlp.down_proj"].unsqueeze(1)
    torch.testing.assert_close(torch.cat(up_and_gate).abs().amax(0), smoothed, rtol=1e-4, atol=0)


def test_a_channel_never_used_keeps_its_scale() -> None:
    class Dead:
        min, max = torch.tensor([-1.0, 0.0, -4.0]), torch.tensor([4.0, 0.0, 1.0])

    fold = Fold("norm", 0.0, torch.arange(3), ("a",))
    s = smoothing_scale(Dead(), [torch.tensor([[1.0, 1.0, 0.0]])], fold, 0.5)  # type: ignore[arg-type]
    assert s.tolist() == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("activations", [{}, {"dynamic": True}, {"symmetric": False}, {"range": "percentile"}])
def test_outlier_channels_hurt_w8a8_less(spiky, spiky_stats, tokens, activations: dict[str, Any]) -> None:
    plain = lost(spiky, spiky_stats, tokens, SchemeParams.model_validate(W8A8 | {"activations": activations}))
    assert lost(spiky, spiky_stats, tokens, smooth(activations=activations)) < 0.25 * plain


def test_smoothing_alone_changes_nothing(spiky, spiky_stats, tokens) -> None:
    scheme = smooth()
    found = smoothquant(spiky, quantizable_linears(spiky, scheme.ignore), spiky_stats, scheme)
    with torch.no_grad():
        before = spiky(tokens).logits
        model = copy_with(spiky, found.parameters | {f"{name}.weight": W for name, W in found.weights.items()})
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    assert found.unfolded == {}
    assert set(found.facts["sites"]) == set(found.scales)


def test_one_scale_per_tensor_keeps_the_rows_of_quantized_producers(spiky, spiky_stats) -> None:
    scheme = smooth(per_tensor=True)
    found = smoothquant(spiky, quantizable_linears(spiky, scheme.ignore), spiky_stats, scheme)
    assert all("per_tensor: true" in reason for reason in found.unfolded.values())
    assert {name.rpartition(".")[2] for name in found.unfolded} == {"o_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in found.scales} == {"q_proj", "gate_proj"}


def test_is_refused_where_activations_are_not_quantized() -> None:
    with pytest.raises(ValidationError, match="add activations, or write transform: awq"):
        SchemeParams.model_validate({"method": "rtn", "transform": "smoothquant"})


def copy_with(model: nn.Module, changed: dict[str, Tensor]) -> nn.Module:
    from copy import deepcopy

    copied = deepcopy(model)
    with torch.no_grad():
        for name, value in changed.items():
            copied.get_parameter(name).copy_(value)
    return copied


def lost(model, stats, tokens: Tensor, scheme: SchemeParams) -> float:
    """Mean squared error of the logits."""
    quantized = quantize_model(model, stats, scheme)
    with torch.no_grad():
        return float((simulate(model, quantized, scheme)(tokens).logits - model(tokens).logits).square().mean())
