from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.calibration_set.methods.quantized_kl import QuantizedKL, probe_linears, sample_hessians, two_halves
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.simulate import simulate
from tests.helpers.activations import seen_by_linears
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tiny_models import tiny_llama
from tests.helpers.tokenized_samples import sample

RNG = np.random.default_rng(0)
CANDIDATES = [(f"{i:064x}", RNG.integers(0, 96, size=12 + 3 * i).astype(np.int32)) for i in range(6)]
TEXTS = [RNG.integers(0, 96, size=length).astype(np.int32) for length in (40, 2, 25)]


def measure(model: Any, **options: Any) -> QuantizedKL:
    given: dict[str, Any] = {"blocks": None, "bits": 3, "group_size": 32, "memory_gb": 1.0}
    return QuantizedKL(model, CANDIDATES, **(given | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_kl_of_the_model_that_the_pipeline_would_quantize(dtype: torch.dtype) -> None:
    """Against collect, quantize_model, simulate, and KL by its definition in float64."""
    model = tiny_llama(dtype)
    chosen = (4, 1, 2)
    settings = StatisticsParams()
    stats = collect(
        model, [(name, ids.tolist()) for name, ids in map(CANDIDATES.__getitem__, chosen)], settings,
        base_model_digest="", fingerprint="",
    )  # fmt: skip
    scheme = SchemeParams(method="gptq", weight_bits=3, group_size=32)
    made = quantize_model(model, stats, scheme)
    quantized = simulate(model, made, scheme)
    total, count = 0.0, 0
    with torch.no_grad():
        for ids in TEXTS:
            tokens = torch.tensor(ids, dtype=torch.int64)[None]
            log_p, log_q = (torch.log_softmax(m(tokens).logits[0, :-1].double(), -1) for m in (model, quantized))
            total += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(ids) - 1

    mine = measure(model)
    texts = mine.texts(TEXTS)
    assert texts.tokens == count
    assert mine(chosen, texts) == pytest.approx(total / count, rel=1e-4)
    assert mine(chosen, texts) > 1e-3
    for name, layer in made.layers.items():
        same = mine.quantize(chosen).get_submodule(name).weight == quantized.get_submodule(name).weight
        assert same.float().mean() > 0.99, name  # a Hessian summed in another order may move a code
        assert layer.fallback is None


def test_hessians_are_those_of_each_sample() -> None:
    model = tiny_llama(torch.float32)
    sites = sample_hessians(model, probe_linears(model, None), CANDIDATES, 1.0)
    assert sorted(len(site.members) for site in sites) == [1, 1, 1, 1, 2, 2, 3, 3]
    for number, (_, ids) in enumerate(CANDIDATES):
        seen = seen_by_linears(model, torch.tensor(ids, dtype=torch.int64)[None])
        for site in sites:
            for member in site.members:
                torch.testing.assert_close(
                    site.hessians[number].double(), seen[member].hessian, rtol=1e-4, atol=1e-4
                )  # fmt: skip
            assert site.tokens[number] == len(ids)
    S, tokens = sites[0].of([3, 0])
    torch.testing.assert_close(S, sites[0].hessians[[0, 3]].double().sum(0))
    assert tokens == len(CANDIDATES[0][1]) + len(CANDIDATES[3][1])


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_llama(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mine = measure(model)
    mine((0, 1), mine.texts(TEXTS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert any(
        not torch.equal(tensor, before[name]) for name, tensor in mine.quantize((0, 1)).state_dict().items()
    )  # it was a copy that changed


def test_order_threads_and_what_came_before_change_nothing() -> None:
    model = tiny_llama(torch.bfloat16)
    mine = measure(model)
    texts = mine.texts(TEXTS)
    first = mine((2, 0, 5), texts)
    assert mine((1, 3), texts) != first
    assert mine((5, 2, 0), texts) == first
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        other = measure(model)
        assert other((0, 2, 5), other.texts(TEXTS)) == first
        assert torch.get_num_threads() == (1 if threads > 1 else 2)
    finally:
        torch.set_num_threads(threads)


def test_bits_and_group_size_act() -> None:
    model = tiny_llama(torch.float32)

    def kl(**options: Any) -> float:
        mine = measure(model, **options)
        return mine((0, 1, 2, 3, 4, 5), mine.texts(TEXTS))

    assert kl(bits=8) < 0.1 * kl(bits=4) < 0.1 * kl(bits=3)
    assert kl(group_size=16) != kl(group_size=None)


def changed(model: nn.Module, copy: nn.Module) -> list[str]:
    weights = dict(model.named_parameters())
    return [name for name, weight in copy.named_parameters() if not torch.equal(weight, weights[name])]


def test_only_the_probe_blocks_are_quantized() -> None:
    model = tiny_llama(torch.float32)
    touched = changed(model, measure(model, blocks=1).quantize((0, 1)))
    assert touched and all(name.startswith("model.layers.1.") for name in touched)
    assert len(changed(model, measure(model, blocks=2).quantize((0, 1)))) == 14
    assert len(changed(model, measure(model, blocks=9).quantize((0, 1)))) == 14  # more than there are: all


@pytest.mark.parametrize(
    ("depth", "blocks", "expected"), [(6, 1, [3]), (6, 2, [1, 4]), (6, 3, [1, 3, 5]), (32, 4, [4, 12, 20, 28])]
)
def test_blocks_spread_over_the_depth(depth: int, blocks: int, expected: list[int]) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(depth))
    model.short = nn.ModuleList([nn.Linear(2, 2)])
    assert list(probe_linears(model, blocks)) == [f"layers.{number}.0" for number in expected]


def test_a_model_without_a_list_of_layers() -> None:
    with pytest.raises(ValueError, match="no list of layers; set blocks: null"):
        probe_linears(nn.Sequential(nn.Linear(2, 2)), 2)


def test_too_much_memory_is_refused_with_the_amount_and_the_fix() -> None:
    # per candidate: 2 layers of three sites 64 wide and one 172 wide, in float32
    needed = 6 * 2 * (3 * 64**2 + 172**2) * 4 / 2**30
    measure(tiny_llama(torch.float32), memory_gb=needed * 1.01)
    with pytest.raises(ValueError, match=r"6 candidates at 8 sites take .* lower the choice's candidates or blocks"):
        measure(tiny_llama(torch.float32), memory_gb=needed * 0.99)


def tuning(documents: int, windows: int = 3, length: int = 10) -> Any:
    rows = [
        sample(100 + 10 * d + w, length, split="tuning", doc=f"d{d}") for d in range(documents) for w in range(windows)
    ]
    return make_pool([5, 5], tuning=rows).tuning


@pytest.mark.parametrize("tokens", [2, 15, 60, 10**6])
def test_halves_share_no_document(tokens: int) -> None:
    split = tuning(7)
    halves = two_halves(split, tokens, np.random.default_rng(0))
    document_of = {int(ids[1]): doc for ids, doc in zip(split.input_ids(range(21)), split.doc_ids, strict=True)}
    documents = [{document_of[int(ids[1])] for ids in half} for half in halves]
    assert not documents[0] & documents[1]
    sizes = [sum(map(len, half)) for half in halves]
    if tokens == 10**6:
        assert sorted(sizes) == [90, 120] and len(documents[0] | documents[1]) == 7
    else:
        assert sizes == [tokens, tokens]
        assert sorted(map(len, documents)) == {2: [1, 1], 15: [2, 2], 60: [3, 4]}[tokens]  # one sample of each first


def test_halves_of_one_document_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 document.*tokenize\.splits\.tuning"):
        two_halves(tuning(1), 20, np.random.default_rng(0))
