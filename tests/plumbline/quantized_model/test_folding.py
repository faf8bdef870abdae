"""Scales fold into every kind of producer, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from plumbline import histogram as histograms
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.running import RunningSite
from plumbline.base_model.inputs import LinearInputs, linear_layers
from plumbline.quantized_model.fold_search import find_folds
from plumbline.quantized_model.folding import Fold, FoldedParameters, folded, scaled_site, shared, snapped
from plumbline.quantized_model.scheme import quantizable_linears

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GQA: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}

MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {**SMALL, "num_key_value_heads": 4}),
    "mistral": (MistralConfig, MistralForCausalLM, GQA),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, GQA),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**GQA, "head_dim": 8}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {**GQA, "head_dim": 8}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {**GQA, "head_dim": 8}),
    "cohere": (CohereConfig, CohereForCausalLM, GQA),
    "phi3": (Phi3Config, Phi3ForCausalLM, GQA),
    "phi": (PhiConfig, PhiForCausalLM, GQA),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, SMALL),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, GQA),
    "opt": (
        OPTConfig,
        OPTForCausalLM,
        {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 64},
    ),
}
HEADS = "embed_out", "lm_head"


def build(kind: str, **changes: Any) -> PreTrainedModel:
    config, model, settings = MODELS[kind]
    torch.manual_seed(0)
    built = model(config(**{**settings, **changes})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 1:  # norms are 1 and biases 0 at first, which would hide mistakes
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "embed" not in name:
                parameter.mul_(4)
    return built


def sites_of(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    inputs = LinearInputs(linear_layers(model, HEADS), lambda *_: None)
    with inputs.hooked(), torch.no_grad():
        inputs.begin("", 8)
        model(torch.arange(8)[None])
    return inputs.members()


def ends(folds: dict[str, Fold], layer: str) -> dict[str, str]:
    """Last part of a site's name -> that of its producer, within one layer."""
    parts = {site: fold.producer for site, fold in folds.items() if layer in site}
    return {site.rpartition(".")[2]: producer.rpartition(".")[2] for site, producer in parts.items()}


def scaled(model: PreTrainedModel, folds: dict[str, Fold], dtype: torch.dtype = torch.float32) -> FoldedParameters:
    """All folds with random scales in [1/4, 4]."""
    changes = FoldedParameters(model)
    for number, fold in enumerate(folds.values()):
        g = torch.Generator().manual_seed(number)
        s = torch.exp2(4 * torch.rand(int(fold.rows.max()) + 1, generator=g) - 2)[fold.rows]
        assert changes.add(fold, snapped(changes, fold, s, dtype))
    return changes


def apply(model: PreTrainedModel, changed: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in changed.items():
            model.get_parameter(name).copy_(value)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(3))).logits


GATED = {"q_proj": "input_layernorm", "o_proj": "v_proj", "gate_proj": "post_attention_layernorm"}
EXPECTED = {
    "llama": GATED | {"down_proj": "up_proj"},
    "mistral": GATED | {"down_proj": "up_proj"},
    "qwen2": GATED | {"down_proj": "up_proj"},
    "qwen3": GATED | {"down_proj": "up_proj"},
    "gemma": GATED | {"down_proj": "up_proj"},
    "gemma2": GATED | {"gate_proj": "pre_feedforward_layernorm", "down_proj": "up_proj"},
    "cohere": {"q_proj": "input_layernorm", "o_proj": "v_proj", "down_proj": "up_proj"},
    "phi3": {"qkv_proj": "input_layernorm", "o_proj": "qkv_proj", "gate_up_proj": "post_attention_layernorm"}
    | {"down_proj": "gate_up_proj"},
    "phi": {"q_proj": "input_layernorm", "dense": "v_proj"},
    "gpt_neox": {"query_key_value": "input_layernorm", "dense": "query_key_value"}
    | {"dense_h_to_4h": "post_attention_layernorm"},
    "olmo2": {"o_proj": "v_proj", "down_proj": "up_proj"},
    "opt": {"q_proj": "self_attn_layer_norm", "out_proj": "v_proj", "fc1": "final_layer_norm", "fc2": "fc1"},
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_folded_model_computes_what_the_base_model_does(kind: str) -> None:
    model = build(kind)
    sites = sites_of(model)
    folds, why = find_folds(model, sites)
    assert ends(folds, "layers.0.") == EXPECTED[kind]
    assert ends(folds, "layers.1.") == EXPECTED[kind]
    assert sorted([*folds, *why]) == sorted(sites)
    base = logits(model)
    changes = scaled(model, folds)
    apply(model, changes.changed)
    torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-5 * float(base.abs().max()))
    # The scales did act: with those of one producer left out nothing is the same.
    producer = f"{folds[next(iter(folds))].producer}.weight"
    apply(model, {producer: build(kind).get_parameter(producer)})
    assert not torch.allclose(logits(model), base, rtol=0.05, atol=0.01 * float(base.abs().max()))


@pytest.mark.parametrize(
    ("kind", "changes", "site", "reason"),
    [
        ("phi", {}, "fc2", "not multiples"),  # GELU between
        ("gpt_neox", {}, "dense_4h_to_h", "not multiples"),
        ("opt", {"activation_function": "gelu"}, "fc2", "not multiples"),
        ("olmo2", {}, "q_proj", "residual stream"),  # norms come after attention
        ("opt", {"do_layer_norm_before": False}, "fc1", "besides model.decoder.layers.0.fc1 depends"),
    ],
)
def test_what_cannot_be_folded_is_left_alone_with_the_reason(
    kind: str, changes: dict[str, Any], site: str, reason: str
) -> None:
    model = build(kind, **changes)
    folds, why = find_folds(model, sites_of(model))
    name = next(name for name in why if "layers.0." in name and name.endswith(site))
    assert reason in why[name]
    assert name not in folds


def test_one_norm_in_front_of_attention_and_mlp_scales_all_its_readers() -> None:
    model = build("phi")
    folds, _ = find_folds(model, sites_of(model))
    readers = folds["model.layers.0.self_attn.q_proj"].readers
    assert [name.rpartition(".")[2] for name in readers] == ["q_proj", "k_proj", "v_proj", "fc1"]


def test_a_reader_that_is_not_quantized_is_scaled_too() -> None:
    model = build("llama")
    linears = quantizable_linears(model, ("lm_head", "re:.*k_proj", "re:.*v_proj"))
    sites = {site: tuple(m for m in members if m in linears) for site, members in sites_of(model).items()}
    folds, _ = find_folds(model, sites)
    base = logits(model)
    found = scaled(model, folds).transform(linears, {}, {}, {})
    assert "model.layers.0.self_attn.k_proj.weight" in found.parameters
    assert "model.layers.0.self_attn.v_proj.weight" in found.parameters
    assert list(found.weights) == list(linears)
    apply(model, found.parameters | {f"{name}.weight": W for name, W in found.weights.items()})
    torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-5 * float(base.abs().max()))


class Shared(nn.Module):
    """A Linear beside the router and the experts, on the same norm."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts, self.shared = experts, nn.Linear(32, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x) + self.shared(x)


def test_a_norm_that_a_router_reads_too_is_left_alone() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**GQA, num_local_experts=4, num_experts_per_tok=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    for layer in model.model.layers:
        layer.mlp = Shared(layer.mlp)
    folds, why = find_folds(model, sites_of(model))
    assert "besides model.layers.0.mlp.shared depends" in why["model.layers.0.mlp.shared"]
    assert ends(folds, "layers.0.") == {"q_proj": "input_layernorm", "o_proj": "v_proj"}


def test_a_norm_shared_by_two_layers_is_left_alone() -> None:
    model = build("llama")
    model.model.layers[1].input_layernorm.weight = model.model.layers[0].input_layernorm.weight
    folds, why = find_folds(model, sites_of(model))
    assert "shares its weight" in why["model.layers.0.self_attn.q_proj"]
    assert "model.layers.0.mlp.gate_proj" in folds


def test_a_tensor_with_two_sites_is_left_alone() -> None:
    model = build("llama")
    sites = sites_of(model)
    attention = "model.layers.0.self_attn."
    sites |= {f"{attention}q_proj": (f"{attention}q_proj",), f"{attention}v_proj": (f"{attention}v_proj",)}
    folds, why = find_folds(model, sites)
    assert "statistics of its own" in why[f"{attention}q_proj"]
    assert f"{attention}v_proj" in why
    assert f"{attention}o_proj" in folds


def test_a_linear_outside_the_decoder_layers_is_left_alone() -> None:
    model = build("llama")
    _, why = find_folds(model, {"lm_head": ("lm_head",)})
    assert why == {"lm_head": "it is read outside the decoder layers, where nothing is folded"}


def test_repeated_heads_share_a_scale() -> None:
    folds, _ = find_folds(model := build("mistral"), sites_of(model))
    rows = folds["model.layers.0.self_attn.o_proj"].rows.view(4, 8)
    # queries 0 and 1 read the first key-value head, 2 and 3 the second
    assert torch.equal(rows, torch.arange(16).view(2, 8)[[0, 0, 1, 1]])


def test_a_bfloat16_norm_is_exact() -> None:
    """What the norm gives times s is what it gave, although its weight is rounded; (1 + w) of Gemma, too."""
    for kind in ("llama", "gemma"):
        model = build(kind).to(torch.bfloat16)
        folds, _ = find_folds(model, sites_of(model))
        fold = folds["model.layers.0.self_attn.q_proj"]
        before = FoldedParameters(model)
        w = before(f"{fold.producer}.weight") + fold.offset
        wanted = torch.exp2(torch.linspace(-3, 3, 32))
        s = snapped(before, fold, wanted, torch.bfloat16)
        torch.testing.assert_close(s, wanted, rtol=0.5 if kind == "gemma" else 2**-7, atol=0)
        assert before.add(fold, s)
        stored = before.transform({}, {}, {}, {}).parameters[f"{fold.producer}.weight"]
        assert stored.dtype == torch.bfloat16
        torch.testing.assert_close((stored.float() + fold.offset) * s, w, rtol=1e-6, atol=0)


def test_a_zero_in_the_norm_gets_no_scale() -> None:
    fold = Fold("norm", 0.0, torch.arange(3), ("linear",))
    weights = {"norm.weight": torch.tensor([1.0, 0.0, 2.0]), "linear.weight": torch.ones(2, 3)}
    s = snapped(weights.get, fold, torch.tensor([4.0, 4.0, 1e30]), torch.float16)
    assert s.tolist() == [4.0, 1.0, 1.0]  # 2e-30 is zero in float16
    assert folded(weights.get, fold, s)["norm.weight"].tolist() == [0.25, 0.0, 2.0]


def test_a_weight_that_overflows_is_not_folded() -> None:
    model = build("llama").to(torch.float16)
    folds, _ = find_folds(model, sites_of(model))
    changes = FoldedParameters(model)
    assert not changes.add(folds["model.layers.0.mlp.down_proj"], torch.full((48,), 1e6))
    assert not changes.changed


def test_rows_and_columns_of_a_linear_are_both_scaled() -> None:
    model = build("llama")
    folds, _ = find_folds(model, sites_of(model))
    changes, W = FoldedParameters(model), model.model.layers[0].mlp.up_proj.weight.detach().double().numpy().copy()
    s, t = torch.rand(32) + 0.5, torch.rand(48) + 0.5
    assert changes.add(folds["model.layers.0.mlp.gate_proj"], s)
    assert changes.add(folds["model.layers.0.mlp.down_proj"], t)
    expected = W * s.double().numpy() / t.double().numpy()[:, None]
    np.testing.assert_allclose(changes.weight("model.layers.0.mlp.up_proj").double().numpy(), expected, rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_statistics_of_a_scaled_site_are_those_of_the_scaled_values(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=g) * torch.tensor([1.0, 30.0, 0.01, 1.0, 5.0, 0.0])
    s = torch.exp2(6 * torch.rand(6, generator=g) - 3)
    site, direct = running(x), running((x.double() / s.double()).float())
    found = scaled_site(site, s)
    assert (found.members, found.width, found.tokens) == (("a",), 6, 40)
    for what in ("sum_abs", "sum_sq", "min", "max"):
        torch.testing.assert_close(getattr(found, what), getattr(direct, what), rtol=1e-5, atol=0, msg=what)
    size = direct.sum_sq.sqrt()
    assert bool(((found.sum - direct.sum).abs() <= 1e-5 * direct.sum_abs).all())
    assert bool(((found.hessian - direct.hessian).abs() <= 1e-5 * size * size.unsqueeze(1)).all())
    assert torch.equal(found.hessian, found.hessian.T)
    assert torch.equal(found.histogram.counts.sum(1), site.histogram.counts.sum(1))
    for q in (0.1, 0.5, 0.9, 0.99):
        got = histograms.quantile(found.histogram, q, per_channel=True, absolute=True)
        exact = (x.double() / s.double()).abs().sort(0).values[int(np.ceil(q * 40)) - 1]
        tolerance = 2.0**-site.histogram.mantissa_bits
        assert bool(((got - exact).abs() <= tolerance * exact + 2.0**-17).all())


def running(x: Tensor) -> Any:
    site = RunningSite("a", x.shape[1], x.dtype, x.device, StatisticsParams(), 1)
    site.add(x, 0, "a")
    return site.result(("a",))


def test_shared_values_are_reduced_over_the_channels_of_a_row() -> None:
    rows = torch.tensor([0, 1, 0, 1])
    values = torch.tensor([1.0, 2.0, 5.0, 3.0])
    assert shared(values, rows, "mean").tolist() == [3.0, 2.5, 3.0, 2.5]
    assert shared(values, rows, "amax").tolist() == [5.0, 3.0, 5.0, 3.0]
