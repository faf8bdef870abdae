"""A tiny model of an architecture: its configuration, and the folder that save_pretrained writes from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from tests.architectures.vocabulary import VOCABULARY, write_tokenizer

SPREAD = 0.125
"""Standard deviation of the weights, 1 / sqrt(64): outputs of a layer are about as large as its inputs."""
NOISE = 0.05
"""Standard deviation of what is added to norms and biases, which start at ones and zeros."""
DRAWN_BY_THE_MODEL = ("A_log", "dt_bias", "D", "dt_proj.bias")
"""Weights of state space models that decide whether the recurrence is stable."""

WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@dataclass(frozen=True)
class Blueprint:
    """What a tiny model is built from."""

    config: str
    """Name of the configuration class in transformers."""
    values: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    images: bool = False
    """Whether the model reads images, too: its class is that of AutoModelForImageTextToText."""
    shard: str | None = None
    """Largest file, for a sharded checkpoint."""

    @property
    def auto(self) -> Any:
        """The class of transformers that loads the folder."""
        return AutoModelForImageTextToText if self.images else AutoModelForCausalLM

    def configuration(self) -> Any:
        """The configuration, as a user of transformers makes it."""
        return getattr(transformers, self.config)(**self.values)

    def write(self, folder: Path) -> Path:
        """Write weights, configuration and tokenizer; the same bytes every time."""
        torch.manual_seed(0)
        model: PreTrainedModel = self.auto.from_config(self.configuration(), dtype=torch.float32)
        disturb(model)
        size = {} if self.shard is None else {"max_shard_size": self.shard}
        model.to(getattr(torch, self.dtype)).save_pretrained(folder, **size)
        write_tokenizer(folder)
        return folder


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Give every weight a spread, so that a mistake in any of them shows in the logits."""
    noise = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.endswith(DRAWN_BY_THE_MODEL) or "conv" in name:
            continue
        if weight.dim() == 1:
            weight.add_(torch.randn(weight.shape, generator=noise), alpha=NOISE)
        else:
            weight.copy_(torch.randn(weight.shape, generator=noise) * SPREAD)


def decoder(**changes: Any) -> dict[str, Any]:
    """Values of most configurations; None as a value takes a name out."""
    values = {**WIDTHS, **TOKENS, "tie_word_embeddings": False, **changes}
    return {name: value for name, value in values.items() if value is not None}
