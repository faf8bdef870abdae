"""Tiny models of every way in which causal LMs call their decoder layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**WIDE),
    "llama, tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "mistral, sliding window": MistralConfig(**WIDE, sliding_window=8),
    "qwen2, both kinds of attention": Qwen2Config(
        **WIDE,
        sliding_window=8,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "gemma2": Gemma2Config(**WIDE, head_dim=8, sliding_window=8),
    "gemma3, two rotary embeddings": Gemma3TextConfig(**WIDE, head_dim=8, sliding_window=8),
    "gemma4, inputs per layer": Gemma4TextConfig(
        **WIDE,
        head_dim=8,
        global_head_dim=16,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=50,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "mixtral": MixtralConfig(**WIDE, num_local_experts=4),
    "gpt2": GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=3, n_positions=64, bos_token_id=0, eos_token_id=0),
    "gpt-neox": GPTNeoXConfig(**SIZES, intermediate_size=44),
    "opt, projections around": OPTConfig(**SIZES, ffn_dim=44, word_embed_proj_dim=16, do_layer_norm_before=False),
    "bloom": BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4),
    "falcon": FalconConfig(**SIZES, alibi=True),
    "phi": PhiConfig(**SIZES, intermediate_size=44),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Any:
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def configs() -> dict[str, Any]:
    return CONFIGS


@pytest.fixture(scope="session")
def built() -> Callable[..., PreTrainedModel]:
    def build(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def ids() -> Callable[[int], list[int]]:
    return lambda n: torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist()
