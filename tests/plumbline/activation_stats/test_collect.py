"""Every statistic against numpy in float64 over activations that independent hooks captured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes, quantile
from plumbline.base_model.inputs import UNKNOWN
from plumbline.histogram import bucket

Sample = tuple[str, list[int]]


def collected(model: PreTrainedModel, samples: list[Sample], **settings: Any) -> ActivationStats:
    return collect(model, samples, StatisticsParams(**settings), base_model_digest="model", fingerprint="tokenizer")


def check_against_captured(stats: ActivationStats, captured: Any, dtype: torch.dtype) -> None:
    """Sums within the rounding of float32 blocks, the rest exactly."""
    k, m = stats.settings.top_k, stats.settings.mantissa_bits
    for name, site in stats.sites.items():
        per_sample = [captured[name][sample_id] for sample_id in stats.sample_ids]
        x = np.concatenate(per_sample)
        assert site.tokens == len(x) and site.samples == len(stats.sample_ids)
        assert site.sample_tokens.tolist() == [len(rows) for rows in per_sample]
        for member in site.members:
            assert np.array_equal(x, np.concatenate([captured[member][s] for s in stats.sample_ids]))
        assert np.array_equal(site.min.numpy(), x.min(0)) and np.array_equal(site.max.numpy(), x.max(0))
        magnitude = np.abs(x).sum(0)
        np.testing.assert_allclose(site.sum_abs.numpy(), magnitude, rtol=3e-7)
        assert np.all(np.abs(site.sum.numpy() - x.sum(0)) <= 3e-7 * magnitude)
        np.testing.assert_allclose(site.sum_sq.numpy(), (x**2).sum(0), rtol=3e-7)
        S = x.T @ x
        scale = np.sqrt(np.outer(np.diag(S), np.diag(S)))
        assert site.hessian is not None and np.all(np.abs(site.hessian.numpy() - S) <= 2e-6 * scale)
        assert torch.equal(site.hessian, site.hessian.T)

        numbers = bucket(torch.from_numpy(x).to(dtype), m).numpy()
        first, counts = site.histogram.first, site.histogram.counts.numpy()
        assert first == numbers.min() and counts.shape[1] == numbers.max() - first + 1
        for channel in range(site.width):
            assert np.array_equal(counts[channel], np.bincount(numbers[:, channel] - first, minlength=counts.shape[1]))

        rows = [
            (-abs(value), sample, position, channel, value)
            for sample, activations in zip(stats.sample_ids, per_sample, strict=True)
            for (position, channel), value in np.ndenumerate(activations)
        ]
        assert [(e.sample_id, e.position, e.channel, e.value) for e in extremes(stats, name)] == [
            row[1:] for row in sorted(rows)[:k]
        ]
        for q in (0.001, 0.5, 0.999):
            exact = np.quantile(x, q, axis=0, method="inverted_cdf")
            found = quantile(site, q, per_channel=True).numpy()
            assert np.all(np.abs(found - exact) <= np.maximum(2.0 ** -(m + 1) * np.abs(exact), 2.0**-20))
        assert quantile(site, 1) == x.max() and quantile(site, 0) == x.min()
        assert quantile(site, 1, absolute=True) == np.abs(x).max()
        exact = np.quantile(np.abs(x), 0.999, method="inverted_cdf")
        assert abs(float(quantile(site, 0.999, absolute=True)) - exact) <= 2.0 ** -(m + 1) * exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_llama(llama: Any, samples: list[Sample], capture: Any, dtype: torch.dtype) -> None:
    model = llama(dtype)
    stats = collected(model, samples, top_k=5)
    assert {name: site.members for name, site in stats.sites.items()} == {
        f"model.layers.{i}.{group[0]}": tuple(f"model.layers.{i}.{member}" for member in group)
        for i in range(2)
        for group in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        )
    }
    assert all(site.histogram.dtype == str(dtype).removeprefix("torch.") for site in stats.sites.values())
    assert stats.unreached == ()
    assert stats.sample_tokens.tolist() == [len(ids) for _, ids in samples]
    check_against_captured(stats, capture(model, samples), dtype)


def test_gpt2(gpt2: PreTrainedModel, samples: list[Sample], capture: Any) -> None:
    stats = collected(gpt2, samples, mantissa_bits=2)
    assert len(stats.sites) == 8  # per block: attention in and out, feed-forward in and out, all of them Conv1D
    assert stats.sites["transformer.h.1.mlp.c_proj"].width == 96
    check_against_captured(stats, capture(gpt2, samples), torch.float32)


def test_a_real_model(shared_data: Path, capture: Any) -> None:
    folder = shared_data / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (shared_data / "corpora" / "tinystories" / "tinystories_train_head.txt").read_text()
    stories = text.split("<|endoftext|>")[:4]
    samples = [(f"{i}", tokenizer(story)["input_ids"][: 150 - 40 * i]) for i, story in enumerate(stories)]
    stats = collected(model, samples)
    assert len(stats.sites) == 20 and stats.sites["model.layers.0.mlp.down_proj"].width == 172
    check_against_captured(stats, capture(model, samples), torch.float32)


def identical(a: ActivationStats, b: ActivationStats) -> bool:
    """Down to the last bit, sums included."""
    assert a.sample_ids == b.sample_ids and list(a.sites) == list(b.sites)
    for name, x in a.sites.items():
        y = b.sites[name]
        assert x.members == y.members and x.histogram.first == y.histogram.first
        pairs = [(x.histogram.counts, y.histogram.counts)]
        pairs += [(getattr(x, f), getattr(y, f)) for f in ("sum", "sum_abs", "sum_sq", "hessian")]
        pairs += [(getattr(x, f), getattr(y, f)) for f in ("sample_tokens", "sample_min", "sample_max")]
        pairs += [(getattr(x, f), getattr(y, f)) for f in ("top_values", "top_positions", "top_channels")]
        if not all(torch.equal(left, right) for left, right in pairs):
            return False
    return True


def test_order_of_samples_and_number_of_threads_change_nothing(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    stats = collected(model, samples)
    assert identical(stats, collected(model, samples[::-1]))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if before != 3 else 1)
        assert identical(stats, collected(model, samples))
    finally:
        torch.set_num_threads(before)


def test_a_sample_counts_the_same_whoever_its_neighbours_are(llama: Any, samples: list[Sample]) -> None:
    """Unequal lengths in one set: each sample's extremes are those it has alone, so there was no pad among them."""
    model = llama(torch.bfloat16)
    stats = collected(model, samples)
    for row, sample in enumerate(samples):
        alone = collected(model, [sample])
        for name, site in alone.sites.items():
            assert torch.equal(stats.sites[name].sample_min[row], site.sample_min[0])
            assert torch.equal(stats.sites[name].sample_max[row], site.sample_max[0])
            assert site.tokens == len(sample[1])


def test_sums_are_never_rounded_to_bfloat16() -> None:
    """4095 ones: a running sum in bfloat16 stops at 256, one product in bfloat16 says 4096."""
    model = Toy()
    stats = collected(model, [("a", [1] * 4095)])
    site = stats.sites["first"]
    assert site.hessian is not None
    assert site.hessian.tolist() == [[4095.0] * 4] * 4
    assert site.sum.tolist() == site.sum_abs.tolist() == site.sum_sq.tolist() == [4095.0] * 4


class Toy(PreTrainedModel):
    """Embeds token t as (t, t, t, t); what else happens is up to `route`."""

    config_class = LlamaConfig

    def __init__(self, route: Callable[[Any, torch.Tensor], None] | None = None) -> None:
        super().__init__(LlamaConfig(vocab_size=9, max_position_embeddings=5000))
        self.embedding = nn.Embedding(9, 4)
        self.embedding.weight.data = torch.arange(9.0)[:, None].expand(9, 4).clone()
        for name in ("first", "second", "third"):
            self.add_module(name, nn.Linear(4, 4, bias=False))
        self.route = route or (lambda model, x: model.first(x))
        self.to(torch.bfloat16)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
        self.route(self, self.embedding(input_ids))


def members(stats: ActivationStats) -> dict[str, tuple[str, ...]]:
    return {name: site.members for name, site in stats.sites.items()}


def test_layers_share_a_site_only_if_they_read_the_same_memory_unchanged() -> None:
    def same_object_later(model: Any, x: torch.Tensor) -> None:
        model.first(x), model.second(x + 1), model.third(x)

    def equal_values(model: Any, x: torch.Tensor) -> None:
        model.first(x), model.second(x.clone())

    def written_in_between(model: Any, x: torch.Tensor) -> None:
        model.first(x), model.second(x.mul_(2))

    def memory_reused(model: Any, x: torch.Tensor) -> None:
        for layer in (model.first, model.second, model.third):
            layer(x + 1)  # freed at once: the allocator hands the same address out again

    def by_keyword(model: Any, x: torch.Tensor) -> None:
        model.first(input=x), model.second(input=x)

    samples = [("a", [1, 2]), ("b", [3])]
    assert members(collected(Toy(same_object_later), samples)) == {"first": ("first", "third"), "second": ("second",)}
    assert members(collected(Toy(equal_values), samples)) == {"first": ("first",), "second": ("second",)}
    written = collected(Toy(written_in_between), samples)
    assert members(written) == {"first": ("first",), "second": ("second",)}
    assert written.sites["second"].max.tolist() == [6] * 4
    assert set(members(collected(Toy(memory_reused), samples))) == {"first", "second", "third"}
    assert members(collected(Toy(by_keyword), samples)) == {"first": ("first", "second")}


def test_a_layer_that_sees_only_some_tokens_and_one_that_sees_none() -> None:
    def experts(model: Any, x: torch.Tensor) -> None:
        model.first(x)
        model.second(x[x[..., 0] > 4])  # (tokens, width): a router's share, empty for some samples

    stats = collected(Toy(experts), [("a", [1, 2]), ("b", [5, 1, 8])], top_k=3)
    site = stats.sites["second"]
    assert (site.tokens, site.samples, site.sample_tokens.tolist()) == (2, 1, [0, 2])
    assert (site.min.tolist(), site.max.tolist()) == ([5.0] * 4, [8.0] * 4)
    assert [(e.sample_id, e.position, e.channel, e.value) for e in extremes(stats, "second")] == [
        ("b", UNKNOWN, channel, 8.0)
        for channel in range(3)  # which of the tokens were handed on is not known
    ]
    assert stats.unreached == ("third",)


def test_a_layer_that_runs_twice_adds_twice() -> None:
    def twice(model: Any, x: torch.Tensor) -> None:
        model.first(x), model.first(-3 * x), model.first(0 * x)

    stats = collected(Toy(twice), [("a", [1, 2])], top_k=2)
    site = stats.sites["first"]
    assert site.tokens == 6
    assert (site.min.tolist(), site.max.tolist(), site.sum.tolist()) == ([-6.0] * 4, [2.0] * 4, [-6.0] * 4)
    assert [(e.value, e.position, e.channel) for e in extremes(stats, "first")] == [(-6, 3, 0), (-6, 3, 1)]


def test_zeros_are_values_too() -> None:
    stats = collected(Toy(), [("a", [0])], top_k=5)
    found = [(e.value, e.position, e.channel) for e in extremes(stats, "first")]
    assert found == [(0, 0, channel) for channel in range(4)]  # the fifth place stays empty


def test_ignored_layers_and_the_vocabulary_projection(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.float32)
    ran = []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: ran.append(1))
    names = set(members(collected(model, samples[:2], ignore=("lm_head", "o_proj", "re:model.layers.1.mlp"))))
    assert names == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    }
    assert not ran  # the logits over the vocabulary are a waste here
    assert "lm_head" in members(collected(model, samples[:2], ignore=()))
    handle.remove()
    with pytest.raises(ValueError, match="no Linear or Conv1D besides"):
        collected(model, samples[:2], ignore=("re:.*",))


def test_the_model_is_left_as_it_was(llama: Any, samples: list[Sample]) -> None:
    model = llama(torch.float32)
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    progress: list[int] = []
    collect(model, samples, StatisticsParams(), base_model_digest="", fingerprint="", progress=progress.append)
    with pytest.raises(ValueError, match="sample zz"):
        collected(model, [("zz", [50])])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    assert progress == [len(ids) for _, ids in samples]


def test_without_hessian(llama: Any, samples: list[Sample]) -> None:
    assert all(site.hessian is None for site in collected(llama(torch.float32), samples, hessian=False).sites.values())


def changing(model: Any, x: torch.Tensor) -> None:
    model.first(x)
    model.second(x if x.shape[1] > 1 else x.clone())


def overflowing(model: Any, x: torch.Tensor) -> None:
    model.first(x * torch.tensor([1, 1, torch.inf, 1], dtype=x.dtype))


@pytest.mark.parametrize(
    ("route", "samples", "message"),
    [
        (None, [], "no samples"),
        (None, [("b", [1]), ("a", [1]), ("b", [2])], "sample b occurs twice"),
        (None, [("a", [])], "sample a has no tokens"),
        (None, [("a", [1] * 5001)], "sample a has 5001 tokens, the model reads at most 5000; lower tokenize"),
        (None, [("a", [1, 9])], "sample a holds token 9, the model knows 0 to 8; the set was tokenized for another"),
        (None, [("a", [-1, 2])], "sample a holds token -1"),
        (changing, [("a", [1, 2]), ("b", [1])], "layer 'second' reads the input of 'second' for sample b, before"),
        (overflowing, [("a", [1]), ("b", [2])], "site 'first', channel 2: the base model computes inf or NaN for"),
        (lambda m, x: m.float().first(x.double().float().double()), [("a", [1])], "activations in torch.float64; load"),
    ],
)  # fmt: skip
def test_refusals(route: Any, samples: list[Sample], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collected(Toy(route), samples)
