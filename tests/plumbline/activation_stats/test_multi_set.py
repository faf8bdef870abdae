"""Many sets in one pass: bit by bit what each set gives by itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.activation_stats import kernel
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.memory import hessian_bytes
from plumbline.activation_stats.multi_set import collect_together
from plumbline.activation_stats.params import StatisticsParams

IGNORE = ("lm_head",)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=64, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM(config).to(request.param).eval()


@pytest.fixture(scope="module")
def samples() -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(1)
    return {f"{i:02d}": torch.randint(0, 64, (5 + 3 * i,), generator=generator).tolist() for i in range(12)}


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_each_set_has_the_totals_that_collecting_it_alone_gives(
    model: LlamaForCausalLM, samples: dict[str, list[int]], normalization: Literal["token", "sequence"]
) -> None:
    sets = [["03", "01", "07"], ["07"], list(samples), ["11", "00", "03"]]
    together = collect_together(model, samples, sets, IGNORE, normalization=normalization, mantissa_bits=3, cache=True)
    for names, totals in zip(sets, together, strict=True):
        alone = collect(
            model,
            [(name, samples[name]) for name in names],
            StatisticsParams(normalization=normalization, mantissa_bits=3, cache=True),
            base_model_digest="",
            fingerprint="",
        )
        assert list(totals.sites) == list(alone.sites) and totals.unreached == alone.unreached
        for name, site in alone.sites.items():
            ours = totals.sites[name]
            assert ours.hessian.equal(site.hessian) if site.hessian is not None else ours.hessian is None
            assert ours.min.equal(site.min) and ours.max.equal(site.max)
            assert (ours.tokens, ours.members, ours.width) == (site.tokens, site.members, site.width)
            for what in ("sum", "sum_abs", "sum_sq"):
                assert getattr(ours, what).equal(getattr(site, what))
            assert ours.histogram is not None and ours.histogram.counts.equal(site.histogram.counts)
            assert ours.histogram.first == site.histogram.first
            assert (ours.histogram.mantissa_bits, ours.histogram.dtype) == (3, site.histogram.dtype)


def test_without_a_histogram_unless_asked(model: LlamaForCausalLM, samples: dict[str, list[int]]) -> None:
    (totals,) = collect_together(model, samples, [["00", "05"]], IGNORE)
    assert all(site.histogram is None for site in totals.sites.values())


def test_a_sample_is_read_once_however_many_sets_hold_it(
    model: LlamaForCausalLM, samples: dict[str, list[int]]
) -> None:
    passes: list[int] = []
    handle = model.base_model.register_forward_hook(lambda *_: passes.append(1))
    held: list[int] = []
    collect_together(model, samples, [["00", "01"], ["01", "02"], ["01"]], IGNORE, held.append)
    handle.remove()
    assert len(passes) == 3 and held == [1, 3, 1]


@pytest.mark.parametrize("names", [[], ["01", "01"]])
def test_refuses_an_empty_set_and_a_sample_twice(
    model: LlamaForCausalLM, samples: dict[str, list[int]], names: list[str]
) -> None:
    with pytest.raises(ValueError, match="each once"):
        collect_together(model, samples, [["00"], names], IGNORE)


def test_an_unknown_token_is_named_with_its_sample(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="sample x holds token 64"):
        collect_together(model, {"x": [1, 64]}, [["x"]], IGNORE)


def test_hessian_bytes_bound_what_is_kept(model: LlamaForCausalLM, samples: dict[str, list[int]]) -> None:
    (totals,) = collect_together(model, samples, [["00"]], IGNORE)
    kept = sum(site.hessian.numel() * 8 for site in totals.sites.values())
    assert kept <= hessian_bytes(model, IGNORE) == 2 * 8 * (6 * 32**2 + 48**2)


def test_precision_settings_are_put_back_when_two_collect_side_by_side() -> None:
    """The first to come is the first to go: what the second one found must not be what stays."""
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    first, second = kernel._exact_products(torch.bfloat16), kernel._exact_products(torch.bfloat16)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
