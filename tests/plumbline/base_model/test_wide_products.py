"""A processor without bfloat16 units: the same bits from a model that is loaded whole, layer by layer, simulated and
exported, and from one that a caller built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.layerwise import CollectionInputs, layer_by_layer
from plumbline.activation_stats.multi_set import collect_together
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.base_model import bfloat16
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.load import load_model
from plumbline.base_model.own_modules import with_own_modules
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.export import export
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate
from tests.helpers.quantizing import quantize

ORIGIN = {"base_model_digest": "", "fingerprint": ""}
SCHEMES = {
    "weights alone": {"weight_bits": 4, "group_size": 32, "method": "gptq"},
    "activations, too": {"weight_bits": 8, "method": "rtn", "activations": {"bits": 8}},
    "behind quantized layers": {"weight_bits": 4, "group_size": 32, "method": "gptq", "propagate": "quantized"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, num_key_value_heads=2, **sizes))
    path = tmp_path_factory.mktemp("model")
    model.bfloat16().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 50, (4, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def samples(tokens: Tensor) -> list[tuple[str, list[int]]]:
    return [(f"{row}", ids) for row, ids in enumerate(tokens.tolist())]


@pytest.fixture
def ordinary(folder: Path) -> PreTrainedModel:
    """As a caller builds it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide product is twice the ordinary one here, so that a layer without it shows in every bit after it."""
    monkeypatch.setattr(bfloat16, "has_units", lambda: False)
    monkeypatch.setattr(bfloat16, "wide_linear", lambda *args, **names: 2 * functional.linear(*args, **names))


@torch.no_grad()
def logits(model: Callable[..., Any], tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def assert_same(found: ActivationStats, expected: ActivationStats) -> None:
    assert sorted(found.sites) == sorted(expected.sites)
    for name, site in expected.sites.items():
        assert torch.equal(found.sites[name].sum, site.sum) and torch.equal(found.sites[name].hessian, site.hessian)
        assert torch.equal(found.sites[name].sample_max, site.sample_max)


def test_statistics(
    folder: Path, ordinary: PreTrainedModel, samples: Any, tmp_path: Path, no_units: None, monkeypatch: Any
) -> None:
    settings = StatisticsParams()
    whole = collect(load_model(folder), samples, settings, **ORIGIN)
    parts = list(layer_by_layer(StreamedModel(folder), CollectionInputs(samples, settings, **ORIGIN), tmp_path))
    assert_same(reduce(lambda a, b: replace(a, sites={**a.sites, **b.sites}), parts), whole)
    assert_same(collect(ordinary, samples, settings, **ORIGIN), whole)
    (together,) = collect_together(ordinary, dict(samples), [list(dict(samples))], settings.ignore)
    for name, site in whole.sites.items():
        assert torch.equal(together.sites[name].sum, site.sum)
    monkeypatch.setattr(bfloat16, "has_units", lambda: True)
    narrow = collect(ordinary, samples, settings, **ORIGIN)
    name = max(whole.sites)
    assert not torch.equal(narrow.sites[name].sum, whole.sites[name].sum)  # else the above would prove nothing


def test_layers_of_a_callers_model(folder: Path, ordinary: PreTrainedModel, tokens: Tensor, no_units: None) -> None:
    ids = tokens[0].tolist()
    decoder = Decoder(with_own_modules(ordinary))
    start = decoder.start(ids)
    hidden = start.hidden
    for number, call in enumerate(start.calls):
        hidden = decoder.run(number, hidden, call)
    assert torch.equal(decoder.logits(ids, hidden), logits(load_model(folder), tokens[:1]))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_simulation_and_the_exported_folder(
    folder: Path, ordinary: PreTrainedModel, tokens: Tensor, samples: Any, scheme: Any, tmp_path: Path, no_units: None
) -> None:
    params = SchemeParams.model_validate(scheme)
    base = load_model(folder)
    stats = collect(base, samples, StatisticsParams(), **ORIGIN)
    quantized = quantize(base, stats, params, samples)
    export(base, quantized, params, folder, tmp_path)
    simulated = logits(simulate(base, quantized, params), tokens)
    assert torch.equal(logits(load_model(tmp_path), tokens), simulated)
    assert torch.equal(logits(with_own_modules(simulate(base, quantized, params)), tokens), simulated)
    again = quantize(ordinary, stats, params, samples)  # what a caller built is quantized to the same
    assert torch.equal(logits(simulate(base, again, params), tokens), simulated)
    assert not torch.equal(logits(simulate(ordinary, quantized, params), tokens), simulated)  # and left as it was
    for model in (base, ordinary):
        require_loads(tmp_path, model, quantized, params, tokens[0].tolist())
