"""Tiny models that read text beside images or sound, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForMultimodalLM,
    Gemma3Config,
    Llama4Config,
    LlavaConfig,
    Mistral3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2AudioConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)

TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
}
WIDE_VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
"""More weights than the language model has: what is biggest is not what is calibrated."""
QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 32,
}
QWEN_TOKENS = {"image_token_id": 7, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6}
M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma3": Gemma3Config(
        text_config={**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8},
        vision_config={**WIDE_VISION, "vision_use_head": False},
        mm_tokens_per_image=4, boi_token_index=5, eoi_token_index=6, image_token_index=7,
    ),
    "qwen2.5-vl": Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": M_ROPE},
        vision_config={**QWEN_VISION, "fullatt_block_indexes": [1]}, **QWEN_TOKENS,
    ),
    "qwen3-vl": Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": M_ROPE},
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}, **QWEN_TOKENS,
    ),
    "qwen3.5": Qwen3_5Config(
        text_config={**TEXT, **LINEAR_ATTENTION}, vision_config={**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    ),
    "mistral3": Mistral3Config(
        text_config={"model_type": "mistral", **TEXT}, vision_config={"model_type": "pixtral", **WIDE_VISION},
        image_token_index=7, spatial_merge_size=1,
    ),
    "llava": LlavaConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={"model_type": "clip_vision_model", **WIDE_VISION},
        image_token_index=7,
    ),
    "llama4": Llama4Config(
        text_config={
            **TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16, "pad_token_id": 0,
        },
        vision_config={**WIDE_VISION, "hidden_size": 32, "vision_output_dim": 32, "projector_input_dim": 32,
                       "projector_output_dim": 32},
        image_token_index=7, boi_token_index=5, eoi_token_index=6,
    ),
    "qwen2-audio": Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **TEXT},
        audio_config={"model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 2,
                      "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 8},
        audio_token_index=7,
    ),
}  # fmt: skip
"""By name; every tower is larger than the language model where its class allows."""


def multimodal_model(name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model of that name in `CONFIGS`, in evaluation mode, whose logits have a spread."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.to(dtype)
