"""`import plumbline` in a notebook: from texts to a quantized model and how far it is from the base model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import plumbline
from plumbline import api

GPTQ = {"method": "gptq", "weight_bits": 4, "group_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as `save_pretrained` writes it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, num_key_value_heads=2, max_position_embeddings=64, **sizes))
    path = tmp_path_factory.mktemp("model")
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return loaded


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 200, size).tolist() for size in draw.integers(2, 60, 60)]


def test_from_texts_to_a_judged_model(
    folder: Path, model: PreTrainedModel, texts: list[list[int]], tmp_path: Path
) -> None:
    chosen = plumbline.choose(texts[:50], "length_stratified", n=16)
    statistics = plumbline.collect(model, chosen)
    quantized = plumbline.quantize(model, statistics, GPTQ)
    simulated = plumbline.simulate(model, quantized, GPTQ)
    result = plumbline.judge(model, simulated, texts[50:])
    assert len(result.kl) == sum(len(text) - 1 for text in texts[50:])
    assert 0 < result.kl.mean() < 0.1
    assert not plumbline.judge(model, model, texts[50:]).kl.any()
    plumbline.save(model, quantized, GPTQ, folder, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert np.array_equal(plumbline.judge(model, loaded, texts[50:]).kl, result.kl)


def test_what_is_chosen_are_the_samples_that_the_seed_draws(texts: list[list[int]]) -> None:
    chosen = plumbline.choose(texts, "random", n=8, seed=3)
    assert chosen == plumbline.choose([*texts[::-1], texts[0]], "random", n=8, seed=3)  # neither order nor copies count
    assert chosen != plumbline.choose(texts, "random", n=8, seed=4)
    assert all(sample in texts for sample in chosen)
    assert plumbline.choose(texts, "first_n", n=5) == texts[:5]


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("randm", {}, "did you mean `random`"),
        ("random", {"buckets": 3}, "has no option `buckets`"),
        ("random", {"n": 61}, "asked for n = 61 samples, found 60"),
        ("embedding_cluster", {}, "reads embeddings, which a list of samples lacks; give the folder of a workspace"),
        ("self_generated", {}, "reads the base model"),
    ],
)
def test_what_cannot_be_chosen_is_answered_with_a_sentence(
    texts: list[list[int]], strategy: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plumbline.choose(texts, strategy, **{"n": 8, **options})


def test_empty_samples_and_a_model_in_training_mode_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"samples\[1\]: expected a list of token ids"):
        plumbline.choose([[1], []], n=1)
    with pytest.raises(ValueError, match="at least two tokens"):
        plumbline.judge(model, model, [[1]])
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            plumbline.collect(model, [[1, 2]])
    finally:
        model.eval()


def test_the_package_offers_what_the_api_does_and_waits_for_torch() -> None:
    assert plumbline.__all__ == api.__all__ and set(api.__all__) <= set(dir(plumbline))
    modules = {path.stem for path in Path(plumbline.__file__).parent.iterdir()}
    assert not modules & set(plumbline.__all__)  # once imported, such a module would take the function's place
    with pytest.raises(AttributeError, match="has no attribute 'choos'"):
        _ = plumbline.choos  # type: ignore[attr-defined]
    code = "import sys, plumbline; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'plumbline.api')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
