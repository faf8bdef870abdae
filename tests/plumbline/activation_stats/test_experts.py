"""Mixtures of experts: what each expert's weights are multiplied with, against routers and experts run by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedModel,
)

from plumbline.activation_stats.sketch import extremes, merge
from plumbline.base_model.experts import topped_up
from plumbline.base_model.inputs import UNKNOWN, LinearInputs, left_out, watched_layers
from tests.helpers.mixtures import BUILD, Sample, collected, inputs_of_experts, make_mixture

PARTS = ("gate_up_proj", "down_proj")


@pytest.mark.parametrize("kind", list(BUILD))
def test_statistics_of_each_expert_are_those_of_the_tokens_sent_to_it(kind: str, samples: list[Sample]) -> None:
    model = make_mixture(kind)
    stats = collected(model, samples)
    expected = inputs_of_experts(model, samples)
    assert {name for name in stats.sites if ".experts." in name} == set(expected)
    for name, parts in expected.items():
        site = stats.sites[name]
        assert site.members == (name,)
        assert site.sample_tokens.tolist() == [len(parts[s][1]) if s in parts else 0 for s, _ in samples]
        x = np.concatenate([part for part, _ in parts.values()])
        np.testing.assert_allclose(site.hessian, x.T @ x, rtol=1e-3, atol=1e-4 * np.abs(x.T @ x).max())
        np.testing.assert_allclose(site.sum_sq, (x**2).sum(0), rtol=1e-4)
        np.testing.assert_allclose(site.max, x.max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(site.min, x.min(0), rtol=1e-4, atol=1e-5)
        largest = extremes(stats, name)[0]
        part, at = parts[largest.sample_id]
        row = at.tolist().index(largest.position)  # the token of the sample, not the row of the expert
        assert largest.value == pytest.approx(part[row, largest.channel], rel=1e-4)
        assert abs(largest.value) == pytest.approx(np.abs(x).max(), rel=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_keep_every_bit_while_experts_are_watched(implementation: str, dtype: torch.dtype) -> None:
    model = make_mixture("mixtral", dtype, implementation)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        seen: list[Tensor] = []
        handle = model.model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
        stats = collected(model, [("a", list(range(40)))], ignore=())
        handle.remove()
        assert torch.equal(model(input_ids=ids).logits, before)
        assert len(seen) == 1 and torch.equal(model.lm_head(seen[0]), before)
    # a token is sent to two of the six experts, however the products are arranged
    for layer in range(2):
        sent = [stats.sites.get(f"model.layers.{layer}.mlp.experts.{e}.down_proj") for e in range(6)]
        assert sum(site.tokens for site in sent if site is not None) == 80


def test_the_intermediate_is_what_the_loop_over_experts_computes(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit the activations that the model's own loop multiplies with down_proj."""
    model = make_mixture("mixtral", torch.bfloat16, "eager")
    inner: list[Tensor] = []
    linear = nn.functional.linear

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape == (32, 24):
            inner.append(x)
        return linear(x, weight, bias)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(nn.functional, "linear", spy)
        model.model(input_ids=torch.tensor([samples[1][1]]))
    stats = collected(model, samples[1:2], hessian=False)
    sites = [site for name, site in stats.sites.items() if name.endswith("down_proj")]
    assert len(inner) == len(sites)
    for x, site in zip(inner, sites, strict=True):
        assert len(x) == site.tokens
        assert torch.equal(x.amax(0).float(), site.max) and torch.equal(x.amin(0).float(), site.min)


def test_routers_and_shared_experts_are_sites_too(samples: list[Sample]) -> None:
    stats = collected(make_mixture("qwen2_moe"), samples)
    tokens = [len(ids) for _, ids in samples]
    mlp = "model.layers.0.mlp."
    # router, shared expert and its gate read the same tensor: one site
    site = next(site for site in stats.sites.values() if mlp + "gate" in site.members)
    assert set(site.members) == {
        mlp + name for name in ("gate", "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert_gate")
    }
    assert site.sample_tokens.tolist() == tokens
    assert stats.sites[mlp + "shared_expert.down_proj"].sample_tokens.tolist() == tokens


def test_experts_that_no_token_reached_are_listed_and_shards_merge(samples: list[Sample]) -> None:
    model = make_mixture("qwen3_moe")
    whole = collected(model, samples)
    parts = [collected(model, [sample]) for sample in samples]
    alone = parts[2]  # a single token: three of six experts
    assert len([name for name in alone.unreached if name.endswith("gate_up_proj")]) == 2 * 3
    assert not set(alone.unreached) & set(alone.sites)
    assert set(alone.unreached) | {m for s in alone.sites.values() for m in s.members} == set(
        watched_layers(model, ("lm_head",))
    )
    joined = parts[0]
    for part in parts[1:]:
        joined = merge(joined, part)
    assert joined.unreached == whole.unreached and set(joined.sites) == set(whole.sites)
    for name, site in whole.sites.items():
        assert torch.equal(site.sample_tokens, joined.sites[name].sample_tokens)
        assert torch.equal(site.histogram.counts, joined.sites[name].histogram.counts)
        torch.testing.assert_close(site.hessian, joined.sites[name].hessian, rtol=1e-9, atol=1e-9)


def test_experts_are_ignored_one_by_one_or_together(samples: list[Sample]) -> None:
    model = make_mixture("mixtral")
    names = set(watched_layers(model, ("re:.*experts[.][0-4]", "lm_head", "o_proj")))
    assert {name for name in names if ".experts." in name} == {
        f"model.layers.{layer}.mlp.experts.5.{part}" for layer in range(2) for part in ("gate_up_proj", "down_proj")
    }
    assert not any(".experts." in name for name in watched_layers(model, ("experts",)))
    stats = collected(model, samples, ignore=("gate_up_proj", "lm_head"))
    assert any(name.endswith(".down_proj") for name in stats.sites)
    assert not any(name.endswith("gate_up_proj") for name in stats.sites)


class Strange(nn.Module):
    """Experts in one tensor, in a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3))


class StrangeExperts(Strange):
    pass


def test_experts_that_are_not_understood_are_named() -> None:
    model = nn.ModuleDict({"experts": StrangeExperts(), "head": nn.Linear(3, 3), "other": Strange()})
    found = left_out(model, ())
    assert set(found) == {"experts", "other"}
    assert "arithmetic is not known" in found["experts"] and "(4, 3, 3)" in found["other"]
    assert left_out(model, ("experts", "other")) == {}
    for kind in BUILD:
        assert left_out(make_mixture(kind), ("lm_head",)) == {}


def test_experts_without_a_gate_and_depthwise_convolutions(samples: list[Sample]) -> None:
    """Nemotron-H: act(up) alone, in a latent space; its Mamba convolutions are no site and named."""
    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=50,
        hidden_size=32,
        layers_block_type=["mamba", "moe", "attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24,
        n_group=1,
        topk_group=1,
    )
    model = NemotronHForCausalLM(config).eval()
    stats = collected(model, samples)
    name = next(name for name in stats.sites if name.endswith("experts.0.up_proj"))
    site, inner = stats.sites[name], stats.sites[name.replace("up_proj", "down_proj")]
    assert torch.equal(site.sample_tokens, inner.sample_tokens) and inner.width == 24
    assert float(inner.min.min()) >= 0  # relu squared
    assert any("conv1d" in layer for layer in left_out(model, ("lm_head",)))


class Selecting(nn.Module):
    """Experts as modules of their own, each handed a selection of the tokens (transformers 4, many remote models)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, 32)
        to_first = flat[:, 0] > 0
        out = torch.zeros_like(flat)
        for expert, rows in zip(self.experts, (to_first, ~to_first), strict=True):
            out[rows] = expert(flat[rows])
        return out.view_as(x)


def test_experts_that_are_modules_count_their_tokens_without_positions(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.float32)
    model.model.layers[0].mlp = Selecting(model)
    stats = collected(model, samples)
    first, second = (stats.sites[f"model.layers.0.mlp.experts.{e}"] for e in range(2))
    total = first.sample_tokens + second.sample_tokens
    assert total.tolist() == [len(ids) for _, ids in samples] and 0 < first.tokens < int(total.sum())
    assert {extreme.position for extreme in extremes(stats, "model.layers.0.mlp.experts.0")} == {UNKNOWN}


@pytest.mark.parametrize("policy", ["all", {"at_least": 9}, {"at_least": 1000}])
def test_experts_see_more_tokens_where_asked(policy: Any, samples: list[Sample]) -> None:
    """The tokens that the router sends, and others until there are enough; all is every token of every sample."""
    model = make_mixture("mixtral")
    routed, asked = collected(model, samples), collected(model, samples, experts=policy)
    lengths = [len(ids) for _, ids in samples]
    sites = [f"model.layers.{n}.mlp.experts.{e}.{part}" for n in (0, 1) for e in range(6) for part in PARTS]
    for name in sites:
        sent = routed.sites[name].sample_tokens.tolist() if name in routed.sites else [0] * len(samples)
        least = lengths if policy == "all" else [min(policy["at_least"], length) for length in lengths]
        assert asked.sites[name].sample_tokens.tolist() == [max(pair) for pair in zip(sent, least, strict=True)]
    if policy == "all":
        first = [asked.sites[f"model.layers.0.mlp.experts.{e}.gate_up_proj"].hessian for e in range(6)]
        assert all(torch.equal(first[0], other) for other in first)


def test_tokens_are_added_evenly() -> None:
    sent = torch.zeros(12, dtype=torch.bool)
    sent[[0, 5]] = True
    assert topped_up(sent, 0).nonzero().view(-1).tolist() == [0, 5]
    assert topped_up(sent, 4).nonzero().view(-1).tolist() == [0, 1, 5, 7]
    assert topped_up(sent, 99).all() and topped_up(sent, None).all()


def test_experts_of_their_own_modules_see_only_what_is_sent(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match=r"statistics\.experts.*module of its own"):
        LinearInputs({"layers.0.experts.1.up_proj": nn.Linear(2, 2)}, lambda *_: None, None, None)
