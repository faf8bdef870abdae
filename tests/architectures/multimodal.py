"""Models that read images beside text; the tests run them on text."""

from __future__ import annotations

from typing import Any

from tests.architectures.blueprint import Blueprint, decoder
from tests.architectures.dense import DENSE
from tests.architectures.hybrids import HYBRIDS
from tests.architectures.mixtures import MIXTURES, ROUTED

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
}
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def _qwen(config: str, text: dict[str, Any], **vision: Any) -> Blueprint:
    values = {"text_config": text, "vision_config": {**QWEN_TOWER, **vision}, **QWEN_TOKENS}
    return Blueprint(config, values, images=True)


MULTIMODAL = {
    "gemma3": Blueprint(
        "Gemma3Config",
        {
            "text_config": DENSE["gemma3-text"].values,
            "vision_config": {**TOWER, "image_size": 56, "vision_use_head": False},
            "mm_tokens_per_image": 4,
            "boi_token_index": 5,
            "eoi_token_index": 6,
            "image_token_index": 7,
        },
        images=True,
    ),
    "gemma4": Blueprint(
        "Gemma4Config",
        {
            "text_config": DENSE["gemma4-text"].values,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "position_embedding_size": 64,
            },
            "boi_token_id": 5,
            "eoi_token_id": 6,
            "image_token_id": 7,
            "video_token_id": 8,
            "audio_token_id": 9,
            "boa_token_id": 10,
            "eoa_token_index": 11,
        },
        images=True,
    ),
    "qwen2.5-vl": _qwen("Qwen2_5_VLConfig", decoder(rope_parameters=THREE_AXES), fullatt_block_indexes=[1]),
    "qwen3-vl": _qwen(
        "Qwen3VLConfig",
        decoder(head_dim=16, rope_parameters=THREE_AXES),
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    ),
    "qwen3-vl-moe": _qwen(
        "Qwen3VLMoeConfig",
        decoder(
            head_dim=16,
            rope_parameters=THREE_AXES,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    ),
    "qwen3.5": _qwen("Qwen3_5Config", HYBRIDS["qwen3.5-text"].values, num_position_embeddings=16),
    "qwen3.5-moe": _qwen("Qwen3_5MoeConfig", HYBRIDS["qwen3.5-moe-text"].values, num_position_embeddings=16),
    "mistral3": Blueprint(
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **decoder(head_dim=16)},
            "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 16},
            "image_token_index": 7,
        },
        images=True,
    ),
    "llama4": Blueprint(
        "Llama4Config",
        {
            "text_config": MIXTURES["llama4-text"].values,
            "vision_config": {
                **TOWER,
                "intermediate_size": 128,
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
            },
            "boi_token_index": 5,
            "eoi_token_index": 6,
            "image_token_index": 7,
        },
        images=True,
    ),
    "llava": Blueprint(
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **decoder()},
            "vision_config": {"model_type": "clip_vision_model", **TOWER},
            "image_token_index": 7,
        },
        images=True,
    ),
    "internvl": Blueprint(
        "InternVLConfig",
        {
            "text_config": {"model_type": "qwen2", **decoder()},
            "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
            "image_token_id": 7,
        },
        images=True,
    ),
    "qwen2-vl": Blueprint(
        "Qwen2VLConfig",
        {
            "text_config": decoder(rope_parameters=THREE_AXES),
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
            **QWEN_TOKENS,
        },
        images=True,
    ),
    "glm4v-moe": _qwen(
        "Glm4vMoeConfig",
        decoder(
            **ROUTED,
            head_dim=16,
            first_k_dense_replace=1,
            rope_parameters={**THREE_AXES, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]},
        ),
        image_size=28,
        patch_size=14,
    ),
    "llava-onevision": Blueprint(
        "LlavaOnevisionConfig",
        {
            "text_config": {"model_type": "qwen2", **decoder()},
            "vision_config": {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
            "image_token_index": 7,
            "video_token_index": 8,
        },
        images=True,
    ),
    "smolvlm": Blueprint(
        "SmolVLMConfig",
        {
            "text_config": {"model_type": "llama", **decoder()},
            "vision_config": {**TOWER, "image_size": 56},
            "image_token_id": 7,
            "tie_word_embeddings": False,
        },
        images=True,
    ),
    "paligemma": Blueprint(
        "PaliGemmaConfig",
        {
            "text_config": {"model_type": "gemma", **DENSE["gemma"].values},
            "vision_config": {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False},
            "projection_dim": 64,
            "image_token_index": 7,
        },
        images=True,
    ),
    "idefics3": Blueprint(
        "Idefics3Config",
        {
            "text_config": {"model_type": "llama", **decoder()},
            "vision_config": {**TOWER, "image_size": 56},
            "image_token_id": 7,
            "tie_word_embeddings": False,
        },
        images=True,
    ),
}
