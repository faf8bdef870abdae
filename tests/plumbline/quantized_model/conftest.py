"""A small random Llama with awkward widths, and what its Linears saw."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.sketch import ActivationStats
from tests.helpers.activations import Seen, seen_by_linears, statistics_of
from tests.helpers.paths import BUNDLED
from tests.helpers.tiny_models import tiny_llama


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


@pytest.fixture(scope="session")
def stats(llama: LlamaForCausalLM, tokens: Tensor) -> ActivationStats:
    """The project's own statistics of `llama` over `tokens`."""
    return statistics_of(llama, tokens)


@pytest.fixture(scope="session")
def bundled() -> tuple[PreTrainedModel, Tensor]:
    """The bundled model and 8 x 128 tokens of text that it can read: a module of Python."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.bfloat16).eval()
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(BUNDLED)(text, truncation=True, max_length=1024)["input_ids"]
    return model, torch.tensor(ids).view(8, 128)


@pytest.fixture(scope="session")
def make_stats() -> Callable[..., ActivationStats]:
    """The project's own statistics of any model over any tokens (samples, length)."""
    return statistics_of
