"""The mixture that is grown computes what its MLPs compute, and the arms of the study are the models of the schemes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.experts import arms
from benchmarks.experts.grow import ACTIVE, EXPERTS, train, upcycled
from benchmarks.experts.routing import chosen_experts, entropy, shares, wrongly_routed
from benchmarks.experts.study import Cell, lines
from plumbline.base_model.inputs import EXPERT
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.grid import dequantize
from plumbline.quantized_model.quantize import quantize_model

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (4, 24)))


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 123.0},
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_all_experts_together_compute_the_mlp(base: LlamaForCausalLM) -> None:
    mixture = upcycled(base, active=EXPERTS, router=0)
    expected = base(input_ids=IDS).logits
    assert torch.allclose(mixture(input_ids=IDS).logits, expected, atol=1e-5 * float(expected.abs().max()))
    experts = mixture.model.layers[0].mlp.experts
    assert (experts.gate_up_proj.shape, experts.down_proj.shape) == ((8, 64, 32), (8, 32, 32))


def test_each_channel_is_in_two_experts(base: LlamaForCausalLM) -> None:
    gates = upcycled(base).model.layers[1].mlp.experts.gate_up_proj[:, :32].flatten(0, 1)
    matches = (gates.unsqueeze(1) == base.model.layers[1].mlp.gate_proj.weight).all(-1)
    assert matches.sum(0).tolist() == [2] * 128
    first = matches.view(2, 128, 128)  # one partition after the other
    assert first.sum((0, 1)).tolist() == [2] * 128
    assert first.sum(1).tolist() == [[1] * 128] * 2


def test_training_brings_the_blocks_closer_to_the_mlps(base: LlamaForCausalLM) -> None:
    mixture = upcycled(base)
    attention = mixture.model.layers[0].self_attn.q_proj.weight.clone()
    rows = np.random.default_rng(1).integers(0, 96, (32, 24))
    losses = [step["error"] for step in train(mixture, base, rows, 30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert torch.equal(mixture.model.layers[0].self_attn.q_proj.weight, attention)


def test_shares_and_entropy() -> None:
    chosen = torch.tensor([[[0, 1], [0, 2]], [[3, 1], [1, 3]]])
    assert shares(chosen, 4).tolist() == [[0.5, 0.25, 0.25, 0], [0, 0.5, 0, 0.5]]
    assert entropy(shares(chosen, 4)).tolist() == pytest.approx([1.5, 1.0])
    assert entropy(torch.full((1, 8), 1 / 8, dtype=torch.float64)).item() == pytest.approx(math.log2(8))


def test_wrong_experts_are_those_after_the_chosen(base: LlamaForCausalLM) -> None:
    mixture = upcycled(base)
    right, wrong = (chosen_experts(model, IDS.numpy())[0] for model in (mixture, wrongly_routed(mixture)))
    assert right.shape == (IDS.numel(), ACTIVE)
    assert torch.equal(wrong.sort().values, ((right + 1) % EXPERTS).sort().values)


def test_arms_are_the_models_of_the_schemes(base: LlamaForCausalLM) -> None:
    mixture = upcycled(base)
    samples = {f"{row}": IDS[row].tolist() for row in range(len(IDS))}
    stats = arms.statistics(mixture, samples)
    assert {name: len(totals.sites) for name, totals in stats.items()}["gptq, all"] == 2 * (
        3 + 2 * EXPERTS
    )  # q, o, router
    nearest = arms.experts_to_nearest(mixture, stats["gptq, all"], 3)
    results = {
        name: (quantized, rounded)
        for name, quantized, rounded in arms.models(mixture, stats, 3, nearest, {name: Factors() for name in stats})
    }
    assert tuple(results) == arms.ARMS
    routed = stats[arms.ROUTED]
    for floor in arms.FLOORS:
        expected = quantize_model(mixture, routed, arms.scheme(3, expert_floor=floor), errors=False).layers
        quantized, rounded = results[f"{arms.ROUTED}, expert_floor: {floor:g}"]
        assert rounded == sum(layer.fallback is not None for layer in expected.values())
        for name, layer in expected.items():
            assert torch.equal(dequantize(layer.weight), dequantize(quantized.layers[name].weight)), name
    rtn = quantize_model(mixture, routed, arms.scheme(3, method="rtn", range="mse"), errors=False).layers
    for name, layer in results[arms.RTN][0].layers.items():
        expected_layer = rtn[name] if EXPERT.search(name) else results[arms.ROUTED][0].layers[name]
        assert torch.equal(dequantize(layer.weight), dequantize(expected_layer.weight)), name


def test_a_sentence_says_no_difference_or_how_large_it_is() -> None:
    rng = np.random.default_rng(0)
    kl = {arms.ROUTED: rng.uniform(1, 2, (5, 12))}
    for name in arms.ARMS[1:]:
        kl[name] = kl[arms.ROUTED] * rng.normal(1, 0.05, (5, 12))
    kl["gptq, at_least: 32"] = kl[arms.ROUTED] * rng.normal(1.2, 0.02, (5, 12))
    kl[arms.RTN] = kl[arms.ROUTED] * 1.5
    kl[arms.ARMS[-1]] = kl[arms.ROUTED]
    cell = Cell(4, 8, kl, np.full(12, 100.0), np.repeat([0, 1], 6), dict.fromkeys(arms.ARMS, 0.0))
    text = "\n".join(lines([cell]))
    assert "rtn, mse: +50.0 %, without spread." in text
    assert "gptq, all: no difference, at most " in text
    assert re.search(r"gptq, at_least: 32: worse by (19|20|21)[.]\d ± ", text)
    assert "expert_floor: 1: the same model." in text
    assert f"| 4 | 8 | 5 | {arms.ROUTED} | {kl[arms.ROUTED].sum() / 6000:.4f} |  | 0 |" in text
