"""The kind of a weight, by its name in a model or in a published checkpoint."""

import pytest

from plumbline.base_model.parts import KINDS, kind_of

LAYER = "model.layers.3."
NAMES = {
    "attention": [
        LAYER + "self_attn.q_proj.weight",
        LAYER + "self_attn.q_proj",
        LAYER + "self_attn.kv_a_proj_with_mqa.weight",
        LAYER + "self_attn.sinks",
        LAYER + "self_attn.gate",  # gated attention, not a router
        LAYER + "linear_attn.in_proj_qkvz.weight",
        "transformer.h.0.attn.c_proj.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "transformer.h.0.self_attention.dense.weight",
        "backbone.layers.4.mixer.o_proj.weight",
        "model.layers.2.shared_transformer.self_attn.q_proj.weight",
    ],
    "state space": [
        "backbone.layers.0.mixer.in_proj.weight",
        LAYER + "mamba.out_proj.weight",
        LAYER + "mamba.A_log",
        LAYER + "conv.conv.weight",
        LAYER + "temporal_block.linear_x.weight",
    ],
    "mlp": [
        LAYER + "mlp.gate_proj.weight",
        LAYER + "mlp.down_proj",
        LAYER + "feed_forward.w1.weight",
        LAYER + "block_sparse_moe.gate_proj.weight",  # the dense layer of a mixture (Kimi)
        "model.decoder.layers.0.fc1.weight",
        "transformer.h.0.mlp.c_proj.weight",
        "backbone.layers.1.mixer.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ],
    "experts": [
        LAYER + "mlp.experts.gate_up_proj",
        LAYER + "mlp.experts.7.gate_proj.weight",
        LAYER + "mlp.experts.down_proj_bias",
        LAYER + "block_sparse_moe.experts.0.w2.weight",
        LAYER + "block_sparse_moe.input_linear.weight",
        LAYER + "feed_forward.experts.down_proj",
        "backbone.layers.1.mixer.experts.3.up_proj.weight",
    ],
    "shared experts": [
        LAYER + "mlp.shared_expert.up_proj.weight",
        LAYER + "mlp.shared_experts.gate_proj.weight",
        LAYER + "shared_mlp.input_linear.weight",
    ],
    "router": [
        LAYER + "mlp.gate.weight",
        LAYER + "mlp.gate.e_score_correction_bias",
        LAYER + "mlp.gate.wg.weight",
        LAYER + "mlp.shared_expert_gate.weight",
        LAYER + "block_sparse_moe.gate.weight",
        LAYER + "block_sparse_moe.router.layer.weight",
        LAYER + "feed_forward.router.weight",
        LAYER + "mlp.router.bias",
        LAYER + "mlp.router.classifier.weight",
        LAYER + "feed_forward.expert_bias",
    ],
    "embedding": [
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens_per_layer.weight",
        "transformer.wte.weight",
        "backbone.embeddings.weight",
        "gpt_neox.embed_in",
    ],
    "head": ["lm_head.weight", "lm_head", "language_model.lm_head.weight", "embed_out.weight"],
    "vision": [
        "model.visual.blocks.0.attn.qkv.weight",
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
        "vision_model.embeddings.position_embedding.weight",
        "multi_modal_projector.linear_1.weight",
        "model.embed_vision.embedding_projection.weight",
        "model.connector.modality_projection.proj.weight",
        "model.visual.deepstack_merger_list.0.linear_fc1.weight",
    ],
    "audio": ["model.audio_tower.layers.0.self_attn.q_proj.weight", "model.embed_audio.embedding_projection.weight"],
    "other": [
        LAYER + "input_layernorm.weight",
        LAYER + "post_attention_layernorm.weight",
        "model.norm.weight",
        LAYER + "per_layer_projection.weight",
        "mlpx",
        "",
    ],
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for kind, names in NAMES.items() for name in names])
def test_the_name_tells_the_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_every_kind_has_an_example() -> None:
    assert set(NAMES) == set(KINDS)
