"""Small models, and what their layers saw, captured without the project's own hooks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plumbline.base_model.bfloat16 import wide_products

Sample = tuple[str, list[int]]
Captured = dict[str, dict[str, NDArray[np.float64]]]


def _reloaded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:  # as a user would load it
        model.to(dtype).save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="session")
def llama() -> Callable[[torch.dtype], PreTrainedModel]:
    def build(dtype: torch.dtype) -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        return _reloaded(LlamaForCausalLM(config), dtype)

    return build


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedModel:
    """Its linear layers are transformers' Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=64, bos_token_id=0, eos_token_id=0)
    return _reloaded(GPT2LMHeadModel(config), torch.float32)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Of unequal lengths, one of a single token."""
    rng = np.random.default_rng(0)
    return [(f"{i:04x}", rng.integers(0, 50, size).tolist()) for i, size in enumerate((7, 33, 1, 20, 33, 64))]


@pytest.fixture(scope="session")
def capture() -> Callable[[PreTrainedModel, list[Sample]], Captured]:
    def run(model: PreTrainedModel, samples: list[Sample]) -> Captured:
        """By layer and sample the input (tokens, width) in float64, from the whole model, one sample at a time."""
        seen: Captured = {}
        current = ""
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | Conv1D):

                def keep(_: nn.Module, args: tuple[torch.Tensor], __: object, name: str = name) -> None:
                    seen.setdefault(name, {})[current] = args[0].flatten(0, -2).double().numpy().copy()

                handles.append(layer.register_forward_hook(keep))
        with torch.no_grad(), wide_products(model):  # as Plumbline multiplies on this processor
            for sample_id, ids in samples:
                current = sample_id
                model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return seen

    return run
