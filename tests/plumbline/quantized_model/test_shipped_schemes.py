"""Every scheme that params.yaml ships, on a real model with awkward widths, through the default loading path."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from plumbline.activation_stats.sketch import ActivationStats
from plumbline.base_model.one_thread import one_thread
from plumbline.quantized_model.export import export
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate
from tests.helpers.quantizing import quantize
from tests.helpers.schemes import NARROW, SHIPPED

FACTORS = Factors()


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def base(stories: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(stories)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.randint(3, 512, (8, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def seen_by_base(base: PreTrainedModel, texts: torch.Tensor, make_stats) -> ActivationStats:
    return make_stats(base, texts, cache=True)


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens).logits


@pytest.mark.parametrize("name", NARROW)
def test_quantizes_loads_and_computes_the_simulated_logits(
    name: str, base: PreTrainedModel, stories: Path, texts: torch.Tensor, seen_by_base: ActivationStats, tmp_path: Path
) -> None:
    scheme = SchemeParams.model_validate(SHIPPED[name])
    samples = [(f"{row:03}", ids) for row, ids in enumerate(texts.tolist())]
    quantized = quantize(base, seen_by_base, scheme, samples, FACTORS)
    assert not [layer for layer in quantized.layers.values() if layer.fallback]
    export(base, quantized, scheme, stories, tmp_path)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path), texts)
    assert torch.equal(found, logits(simulate(base, quantized, scheme), texts))
    expected = logits(base, texts)
    distance = float((found - expected).norm() / expected.norm())
    assert 0 < distance < (0.6 if scheme.weight_bits == 2 else 0.25), distance


@pytest.mark.parametrize("name", ["w8a8-smoothquant", "w4a16-awq", "w4a16-propagated"])
def test_one_model_is_quantized_by_several_threads(
    name: str, base: PreTrainedModel, texts: torch.Tensor, seen_by_base: ActivationStats
) -> None:
    """As a study does. These three look into the layers of the model, by hooks and by stand-ins."""
    scheme = SchemeParams.model_validate(SHIPPED[name])
    samples = [(f"{row:03}", ids) for row, ids in enumerate(texts.tolist())]

    def answers() -> torch.Tensor:
        return logits(simulate(base, quantize(base, seen_by_base, scheme, samples), scheme), texts)

    with ThreadPoolExecutor(4) as threads, one_thread():
        expected = answers()
        assert all(torch.equal(found, expected) for found in threads.map(lambda _: answers(), range(8)))


def test_there_is_a_scheme_of_every_kind() -> None:
    schemes = [SchemeParams.model_validate(entry) for entry in SHIPPED.values()]
    assert {scheme.method for scheme in schemes} == {"rtn", "gptq", "adaround"}
    assert {scheme.weight_bits for scheme in schemes} == {2, 3, 4, 8}
    assert {scheme.transform for scheme in schemes} == {None, "smoothquant", "awq"}
    assert any(scheme.mixed for scheme in schemes)
    assert {scheme.symmetric for scheme in schemes} == {True, False}
    ranges = {scheme.activations.range for scheme in schemes if scheme.activations}
    assert ranges == {"minmax", "percentile", "mse"}
