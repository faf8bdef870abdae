"""Models with state spaces, short convolutions or linear attention, mostly beside attention."""

from __future__ import annotations

from typing import Any

from tests.architectures.blueprint import TOKENS, Blueprint, decoder
from tests.architectures.mixtures import EXPERTS
from tests.architectures.vocabulary import VOCABULARY

DELTA_NET: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SHARED: dict[str, Any] = {**EXPERTS, "shared_expert_intermediate_size": 32}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
GRANITE: dict[str, Any] = {**MAMBA, "mamba_chunk_size": 32, "layer_types": ["mamba", "attention"]}

HYBRIDS = {
    "mamba": Blueprint(
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "time_step_rank": 16, **TOKENS},
    ),
    "mamba2": Blueprint(
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 32,
            "tie_word_embeddings": False,
            **TOKENS,
        },
    ),
    "falcon-h1": Blueprint("FalconH1Config", decoder(**MAMBA, mamba_d_ssm=128, mamba_chunk_size=32)),
    "bamba": Blueprint("BambaConfig", decoder(**MAMBA, mamba_chunk_size=32, attn_layer_indices=[1])),
    "zamba2": Blueprint(
        "Zamba2Config",
        decoder(
            num_hidden_layers=3,
            num_key_value_heads=4,
            layers_block_type=["mamba", "hybrid", "mamba"],
            mamba_d_state=16,
            n_mamba_heads=8,
            chunk_size=32,
            adapter_rank=16,
            use_mamba_kernels=False,
        ),
    ),
    "nemotron-h": Blueprint(
        "NemotronHConfig",
        decoder(
            num_hidden_layers=None,
            layers_block_type=["mamba", "attention", "moe"],
            head_dim=16,
            ssm_state_size=16,
            mamba_num_heads=8,
            mamba_head_dim=16,
            n_groups=1,
            chunk_size=32,
            use_mamba_kernels=False,
            n_routed_experts=4,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=32,
        ),
    ),
    "jamba": Blueprint(
        "JambaConfig",
        decoder(
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            num_experts_per_tok=2,
            use_mamba_kernels=False,
            mamba_d_state=16,
            mamba_dt_rank=16,
        ),
    ),
    "granite-hybrid": Blueprint(
        "GraniteMoeHybridConfig",
        decoder(**GRANITE, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=32),
    ),
    "granite-hybrid-dense": Blueprint(
        "GraniteMoeHybridConfig",
        decoder(**GRANITE, num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=96),
    ),
    "lfm2": Blueprint("Lfm2Config", decoder(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    "lfm2-moe": Blueprint(
        "Lfm2MoeConfig", decoder(**EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1)
    ),
    "qwen3-next": Blueprint("Qwen3NextConfig", decoder(**SHARED, **DELTA_NET)),
    "qwen3.5-text": Blueprint("Qwen3_5TextConfig", decoder(**DELTA_NET)),
    "qwen3.5-moe-text": Blueprint("Qwen3_5MoeTextConfig", decoder(**SHARED, **DELTA_NET)),
    "kimi-linear": Blueprint(
        "KimiLinearConfig",
        decoder(
            num_key_value_heads=4,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            linear_head_dim=16,
            linear_num_heads=16,
            layer_types=["linear_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse"],
        ),
    ),
    "olmo-hybrid": Blueprint(
        "OlmoHybridConfig",
        decoder(
            linear_num_key_heads=16,
            linear_num_value_heads=16,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "minimax": Blueprint(
        "MiniMaxConfig",
        decoder(
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=16,
            block_size=32,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "recurrent-gemma": Blueprint(
        "RecurrentGemmaConfig",
        decoder(
            num_hidden_layers=3,
            max_position_embeddings=None,
            attention_window_size=64,
            block_types=["recurrent", "recurrent", "attention"],
            tie_word_embeddings=True,
        ),
    ),
}
