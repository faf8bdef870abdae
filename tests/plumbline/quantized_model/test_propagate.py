"""Propagation against the ordinary statistics, and against models quantized up to a site, one by one."""

from __future__ import annotations

import copy

import pytest
import torch

from plumbline.activation_stats import expert_calls
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.decoder import Decoder
from plumbline.quantized_model import layer_walk
from plumbline.quantized_model.grid import Grid, QuantizedWeight, dequantize
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagate import propagated, walk
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.quantize_site import quantize_site
from tests.helpers.mixtures import make_mixture

SCHEME = SchemeParams.model_validate({"method": "gptq", "group_size": 32, "weight_bits": 3, "propagate": "quantized"})
PLAIN = SCHEME.model_copy(update={"correction": 0.0})
STAGES = [
    [f"model.layers.{number}.{part}" for part in parts]
    for number in range(2)
    for parts in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
]


@pytest.fixture
def samples(tokens):
    lengths = [48, 30, 48, 11, 30, 5]
    return [(f"{row:03}", ids[:n]) for row, (ids, n) in enumerate(zip(tokens.tolist(), lengths, strict=False))]


@pytest.fixture
def unchanged(monkeypatch):
    """Quantizing that changes nothing: every weight stays what it is."""
    monkeypatch.setattr("plumbline.quantized_model.layer_walk.put", lambda *given: None)


@pytest.mark.parametrize("scheme", [PLAIN, SCHEME], ids=["plain", "corrected"])
@pytest.mark.parametrize("shards", [1, 3])
def test_behind_layers_that_do_not_change_statistics_are_the_stored_ones(
    llama, samples, unchanged, shards, scheme
) -> None:
    settings = StatisticsParams(shards=shards)
    seen = {}

    def solve(site, names, cross):
        seen[names[0]] = site
        assert (cross is not None) == (scheme is SCHEME)
        if cross is not None:  # nothing to correct, and to the bit
            assert not cross.cross.any()
        nothing = QuantizedWeight(torch.zeros(1, 1, dtype=torch.int8), torch.ones(1, 1), Grid(4))
        return {name: Layer(nothing, None, None) for name in names}

    names = [name for stage in STAGES for name in stage]
    walked = walk(Decoder(llama), samples, names, settings, solve, scheme)
    assert [(part.number, set(part.layers)) for part in walked] == [
        (number, {name for name in names if f"layers.{number}." in name}) for number in range(2)
    ]
    stored = collect(llama, samples, settings, base_model_digest="", fingerprint="")
    assert list(seen) == [stage[0] for stage in STAGES]
    for name, site in seen.items():
        other = stored.sites[name]
        assert site.members == other.members
        if scheme is PLAIN or llama.dtype == torch.float32:
            assert torch.equal(site.hessian, other.hessian)
        else:
            torch.testing.assert_close(site.hessian, other.hessian, rtol=1e-5, atol=1e-4)
        assert torch.equal(site.sample_max, other.sample_max)
        assert torch.equal(site.sample_tokens, other.sample_tokens)


def reference(model, samples):
    """The slow way: collect with the whole model, quantize one stage, put it in, collect again."""
    partly, found = copy.deepcopy(model), {}
    for stage in STAGES:
        stats = collect(partly, samples, StatisticsParams(), base_model_digest="", fingerprint="")
        members = {name: model.get_submodule(name).weight.detach() for name in stage}
        width = members[stage[0]].shape[1]
        grid = Grid(3, 32 if width % 32 == 0 else 4)
        found |= quantize_site(members, stats.sites[stage[0]], grid, PLAIN)
        for name in stage:
            with torch.no_grad():
                partly.get_submodule(name).weight.copy_(dequantize(found[name].weight))
    return found


def test_equals_quantizing_the_model_piece_by_piece(llama, samples) -> None:
    stats = collect(llama, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    quantized = propagated(llama, samples, PLAIN, stats)
    expected = reference(llama, samples)
    sizes = {name: layer.group_size for name, layer in quantized.layers.items()}
    assert sizes["model.layers.0.mlp.down_proj"] == 4
    assert set(quantized.layers) == set(expected)
    for name, layer in quantized.layers.items():
        assert torch.equal(layer.weight.codes, expected[name].weight.codes), name
        assert torch.equal(layer.weight.scale, expected[name].weight.scale), name
    stored = quantize_model(llama, stats, SCHEME.model_copy(update={"propagate": "full_precision"}))
    first, last = STAGES[0][0], STAGES[-1][0]
    assert torch.equal(stored.layers[first].weight.codes, quantized.layers[first].weight.codes)
    assert not torch.equal(stored.layers[last].weight.codes, quantized.layers[last].weight.codes)
    for name, value in llama.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all("forward" not in layer.__dict__ and not layer._forward_pre_hooks for layer in llama.modules())


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe"])
@pytest.mark.parametrize("fused", [True, False], ids=["called once", "a pass per group"])
def test_experts_in_groups_are_quantized_as_together(kind, fused, monkeypatch) -> None:
    """Their Hessians need not fit into memory beside each other."""
    model = make_mixture(kind)
    random = torch.Generator().manual_seed(0)
    samples = [(f"{row}", torch.randint(0, 50, (n,), generator=random).tolist()) for row, n in enumerate((40, 9, 25))]
    stats = collect(model, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    scheme = SCHEME.model_copy(update={"group_size": 8})
    together = propagated(model, samples, scheme, stats)

    groups, groups_of = list[int](), expert_calls.groups_of
    monkeypatch.setattr(expert_calls, "EXPERTS", 1)
    monkeypatch.setattr(
        layer_walk, "groups_of", lambda *args: (found := groups_of(*args), groups.append(len(found)))[0]
    )
    monkeypatch.setattr(layer_walk, "are_fused_experts", lambda module: fused)
    apart = propagated(model, samples, scheme, stats)
    assert groups.count(6) == 2 * 2  # layers x (up and down)
    assert apart.notes == together.notes
    for name, layer in apart.layers.items():
        assert torch.equal(layer.weight.codes, together.layers[name].weight.codes), name
        assert torch.equal(layer.weight.scale, together.layers[name].weight.scale), name


def test_the_order_of_samples_does_not_matter(llama, samples) -> None:
    stats = collect(llama, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    one, other = (propagated(llama, given, SCHEME, stats) for given in (samples, samples[::-1]))
    assert one.notes == other.notes
    for name, layer in one.layers.items():
        assert torch.equal(layer.weight.codes, other.layers[name].weight.codes)


def test_the_gain_is_that_of_the_simulated_models(llama, samples) -> None:
    from plumbline.quantized_model.simulate import simulate

    stats = collect(llama, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    quantized = propagated(llama, samples, SCHEME, stats)
    stored = quantize_model(llama, stats, SCHEME.model_copy(update={"propagate": "full_precision"}))
    said = quantized.notes["propagate"]
    for what, model in (("stored", stored), ("propagated", quantized)):
        simulated, sums, tokens = simulate(llama, model, SCHEME), 0.0, 0
        for _, ids in samples:
            with torch.no_grad():
                p, q = (m(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1) for m in (llama, simulated))
            sums, tokens = sums + float((p.exp() * (p - q)).sum()), tokens + len(ids) - 1
        assert said[what]["kl"] == pytest.approx(sums / tokens, rel=1e-3)
        assert said[what]["error"] > 0
    assert said["measured_on"] == f"{len(samples)} of the calibration samples themselves, {tokens} tokens"


def test_masked_tokens_do_not_count(llama, samples) -> None:
    """A sample of which no token counts is as good as none."""
    stats = collect(llama, samples, StatisticsParams(), base_model_digest="", fingerprint="")
    masks = {samples[0][0]: torch.zeros(len(samples[0][1]), dtype=torch.bool)}
    masked, fewer = propagated(llama, samples, SCHEME, stats, masks), propagated(llama, samples[1:], SCHEME, stats)
    for name, layer in masked.layers.items():
        assert torch.equal(layer.weight.codes, fewer.layers[name].weight.codes)


def test_missing_masks_are_refused(llama, samples) -> None:
    settings = StatisticsParams(tokens="assistant")
    stats = collect(llama, samples, settings, base_model_digest="", fingerprint="")
    with pytest.raises(ValueError, match=r"statistics\.tokens: assistant needs the mask"):
        propagated(llama, samples, SCHEME, stats)
