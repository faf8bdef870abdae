"""Language models small enough to build in every test."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tokenizer import write_byte_tokenizer

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def random_llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A Llama with random weights in float32; `config` goes to LlamaConfig, over SIZES."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **config})).eval()


def tiny_llama(dtype: torch.dtype, tie: bool = True) -> LlamaForCausalLM:
    """A Llama with awkward widths whose logits have a spread, as from_pretrained loads it."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 172}
    model = random_llama(**sizes, tie_word_embeddings=tie, dtype=dtype).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # the default initialisation leaves next to nothing in the logits
    with tempfile.TemporaryDirectory() as folder:
        # Loaded as a user would: `.to(dtype)` rounds the rotary frequencies, which from_pretrained keeps in float32.
        model.save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def make_base_model(folder: Path, dtype: str, seed: int = 0, hidden: int = 32) -> Path:
    """Save a Llama that reads 64 bytes, with its tokenizer, in a folder."""
    write_byte_tokenizer(folder)
    sizes = {"vocab_size": 257, "hidden_size": hidden, "intermediate_size": 72}
    model = random_llama(seed, **sizes, bos_token_id=0, eos_token_id=1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
