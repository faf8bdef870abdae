"""What a GPU makes of statistics and schemes is what a CPU makes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate
from tests.helpers.model_steps import STEPS, Steps, files, write_inputs
from tests.helpers.quantizing import quantize
from tests.helpers.schemes import SHIPPED

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees"
)


@pytest.fixture(scope="module")
def base(make_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return make_llama(torch.float32)


@pytest.fixture(scope="module")
def on_gpu(base: LlamaForCausalLM) -> PreTrainedModel:
    return copy.deepcopy(base).to(DEVICE)


@pytest.fixture(scope="module")
def seen_by_base(base: LlamaForCausalLM, tokens: Tensor, make_stats: Callable[..., ActivationStats]) -> ActivationStats:
    return make_stats(base, tokens)


def test_statistics(
    on_gpu: PreTrainedModel, tokens: Tensor, seen_by_base: ActivationStats, make_stats: Callable[..., ActivationStats]
) -> None:
    """Activations differ in their last bits, so that a value next to an edge may be counted in the next bucket."""
    found = make_stats(on_gpu, tokens)
    assert found.sites.keys() == seen_by_base.sites.keys()
    for name, site in found.sites.items():
        expected = seen_by_base.sites[name]
        assert site.hessian is not None and expected.hessian is not None
        assert torch.equal(site.sample_tokens, expected.sample_tokens)
        scale = expected.hessian.diag().outer(expected.hessian.diag()).sqrt()
        assert float(((site.hessian - expected.hessian).abs() / scale).max()) <= 1e-5
        assert torch.allclose(site.sum, expected.sum, rtol=1e-4, atol=1e-3)
        assert int(site.histogram.counts.sum()) == int(expected.histogram.counts.sum())


@pytest.mark.parametrize("name", SHIPPED)
def test_schemes(
    name: str, base: LlamaForCausalLM, on_gpu: PreTrainedModel, tokens: Tensor, seen_by_base: ActivationStats
) -> None:
    scheme = SchemeParams.model_validate(SHIPPED[name])
    samples = [(f"{row:03}", ids) for row, ids in enumerate(tokens.tolist())]
    with torch.no_grad():
        expected = simulate(base, quantize(base, seen_by_base, scheme, samples), scheme)(tokens).logits
        quantized = quantize(on_gpu, seen_by_base, scheme, samples)
        found = simulate(on_gpu, quantized, scheme)(tokens.to(DEVICE)).logits.cpu()
        damage = float((expected - base(tokens).logits).norm())
    assert float((found - expected).norm()) <= 0.1 * damage  # a tie may round the other way


def test_an_interrupted_step_layer_by_layer_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"num_hidden_layers": 3, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 128}
    for name in ("undisturbed", "interrupted"):
        write_inputs(tmp_path / name, LlamaConfig, values | {"num_attention_heads": 4, "num_key_value_heads": 4})
    write, broken = Pieces.write, set[Path]()

    def breaks_once(pieces: Pieces, name: str, tensors: Any, facts: Any) -> None:
        if pieces.folder.suffix == ".parts" and name == "model.layers.1" and pieces.folder not in broken:
            broken.add(pieces.folder)
            raise KeyboardInterrupt
        write(pieces, name, tensors, facts)

    monkeypatch.setattr(Pieces, "write", breaks_once)
    for step in STEPS:
        getattr(Steps(tmp_path / "undisturbed", "layerwise", device=DEVICE), step)()
        steps = Steps(tmp_path / "interrupted", "layerwise", tmp_path / "interrupted" / f"{step}.parts", DEVICE)
        if step != "evaluation":  # its points have other names
            with pytest.raises(KeyboardInterrupt):
                getattr(steps, step)()
        getattr(steps, step)()
        found, expected = (files(tmp_path / name / f"{step}-layerwise") for name in ("interrupted", "undisturbed"))
        assert found == expected
