"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

from tests.architectures.blueprint import Blueprint, decoder

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
LLAMA4: dict[str, Any] = {
    "head_dim": 16,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 64,
}
QWEN3_MOE = decoder(**EXPERTS, head_dim=16)

MIXTURES = {
    "mixtral": Blueprint("MixtralConfig", decoder(**LOCAL)),
    "qwen2-moe": Blueprint("Qwen2MoeConfig", decoder(**EXPERTS, shared_expert_intermediate_size=32)),
    "qwen3-moe": Blueprint("Qwen3MoeConfig", QWEN3_MOE),
    "qwen3-moe-tied": Blueprint("Qwen3MoeConfig", {**QWEN3_MOE, "tie_word_embeddings": True}),
    "qwen3-moe-float16": Blueprint("Qwen3MoeConfig", QWEN3_MOE, dtype="float16"),
    "qwen3-moe-sharded": Blueprint("Qwen3MoeConfig", QWEN3_MOE, shard="60KB"),
    "deepseek-v2": Blueprint("DeepseekV2Config", decoder(**LATENT, **ROUTED, first_k_dense_replace=1)),
    "deepseek-v3": Blueprint("DeepseekV3Config", decoder(**LATENT, **ROUTED, first_k_dense_replace=1)),
    "glm4-moe": Blueprint("Glm4MoeConfig", decoder(**ROUTED, head_dim=16, first_k_dense_replace=1)),
    "dots1": Blueprint("Dots1Config", decoder(**ROUTED, head_dim=16, first_k_dense_replace=1)),
    "olmoe": Blueprint("OlmoeConfig", decoder(num_experts=4, num_experts_per_tok=2, intermediate_size=32)),
    "granite-moe": Blueprint("GraniteMoeConfig", decoder(**LOCAL)),
    "granite-moe-shared": Blueprint("GraniteMoeSharedConfig", decoder(**LOCAL, shared_intermediate_size=32)),
    "gpt-oss": Blueprint(
        "GptOssConfig",
        decoder(
            **LOCAL,
            head_dim=16,
            sliding_window=16,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
    ),
    "llama4-text": Blueprint("Llama4TextConfig", decoder(**LLAMA4)),
    "phi-moe": Blueprint("PhimoeConfig", decoder(**LOCAL)),
    "ernie4.5-moe": Blueprint(
        "Ernie4_5_MoeConfig",
        decoder(
            head_dim=16,
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=32,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            moe_layer_end_index=1,
        ),
    ),
    "minimax-m2": Blueprint("MiniMaxM2Config", decoder(**LOCAL, head_dim=16, intermediate_size=32)),
    "hunyuan-moe": Blueprint("HunYuanMoEV1Config", decoder(num_experts=4, moe_topk=2, head_dim=16)),
    "afmoe": Blueprint(
        "AfmoeConfig", decoder(**EXPERTS, head_dim=16, num_dense_layers=1, num_shared_experts=1, sliding_window=16)
    ),
    "flex-olmo": Blueprint("FlexOlmoConfig", decoder(num_experts=4, num_experts_per_tok=2)),
    "jetmoe": Blueprint(
        "JetMoeConfig", decoder(**LOCAL, kv_channels=16, num_attention_heads=None, num_key_value_heads=2)
    ),
    "deepseek-v3.2": Blueprint(
        "DeepseekV32Config",
        decoder(
            **LATENT, **ROUTED, mlp_layer_types=["dense", "sparse"], index_topk=16, index_head_dim=32, index_n_heads=16
        ),
    ),
    "glm4-moe-lite": Blueprint("Glm4MoeLiteConfig", decoder(**LATENT, **ROUTED, mlp_layer_types=["dense", "sparse"])),
    "exaone-moe": Blueprint(
        "ExaoneMoeConfig",
        decoder(
            **EXPERTS,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse"],
        ),
    ),
    "mimo-v2-flash": Blueprint(
        "MiMoV2FlashConfig",
        decoder(
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            head_dim=16,
            v_head_dim=16,
            sliding_window=16,
            layer_types=["full_attention", "sliding_attention"],
            mlp_layer_types=["dense", "sparse"],
        ),
    ),
    "cohere2-moe": Blueprint(
        "Cohere2MoeConfig",
        decoder(
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            intermediate_size=32,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=True,
        ),
    ),
    "longcat-flash": Blueprint(
        "LongcatFlashConfig",
        decoder(
            **LATENT,
            head_dim=16,
            num_layers=2,
            num_hidden_layers=None,
            ffn_hidden_size=96,
            moe_topk=2,
            n_routed_experts=4,
            zero_expert_num=2,
            expert_ffn_hidden_size=32,
        ),
    ),
    "gemma4-moe-text": Blueprint(
        "Gemma4TextConfig",
        decoder(
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            global_head_dim=32,
            hidden_size_per_layer_input=0,
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=32,
            tie_word_embeddings=True,
        ),
    ),
    "solar-open": Blueprint("SolarOpenConfig", decoder(**ROUTED, head_dim=16)),
}
