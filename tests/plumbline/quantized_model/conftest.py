"""A small random Llama with awkward widths, and what its Linears saw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.quantized_model import awq

SHIPPED: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).resolve().parents[3] / "params.yaml").read_text(encoding="utf-8")
)["schemes"]
"""Schemes by name, as params.yaml has them."""


@dataclass(frozen=True)
class Seen:
    """The input of one Linear over a few tokens, collected here without the project's own statistics."""

    x: Tensor
    hessian: Tensor


def tiny_llama(dtype: torch.dtype, tie: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
        dtype=dtype,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # the default initialisation leaves next to nothing in the logits
    with tempfile.TemporaryDirectory() as folder:
        # Loaded as a user would: `.to(dtype)` rounds the rotary frequencies, which from_pretrained keeps in float32.
        model.save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def seen_by_linears(model: nn.Module, tokens: Tensor) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            seen[name] = Seen(x, x.T @ x)

        return hook

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return torch.randint(0, 96, (8, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def llama(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    return tiny_llama(request.param)


@pytest.fixture(scope="session")
def seen(llama: LlamaForCausalLM, tokens: Tensor) -> dict[str, Seen]:
    return seen_by_linears(llama, tokens)


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """The model of `llama`, with an untied head for example."""
    return tiny_llama


@pytest.fixture(scope="session")
def see() -> Callable[[nn.Module, Tensor], dict[str, Seen]]:
    """What the Linears of any model see."""
    return seen_by_linears


def statistics_of(model: PreTrainedModel, tokens: Tensor, **settings: object) -> ActivationStats:
    samples = [(f"{row:03}", ids) for row, ids in enumerate(tokens.tolist())]
    params = StatisticsParams.model_validate(settings)
    return collect(model, samples, params, base_model_digest="", fingerprint="")


@pytest.fixture(scope="session")
def stats(llama: LlamaForCausalLM, tokens: Tensor) -> ActivationStats:
    """The project's own statistics of `llama` over `tokens`."""
    return statistics_of(llama, tokens)


@pytest.fixture(scope="session")
def bundled() -> tuple[PreTrainedModel, Tensor]:
    """The bundled model and 8 x 128 tokens of text that it can read: a module of this project."""
    folder = Path(__file__).resolve().parents[3] / "plumbline" / "base_model" / "llama-stdlib-6m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    text = Path(awq.__file__).read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=1024)["input_ids"]
    return model, torch.tensor(ids).view(8, 128)


@pytest.fixture(scope="session")
def make_stats() -> Callable[..., ActivationStats]:
    """The project's own statistics of any model over any tokens (samples, length)."""
    return statistics_of
