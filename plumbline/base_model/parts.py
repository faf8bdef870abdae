"""The kind of a weight, by its name: attention, experts, router and so on.

Names are those of transformers' modules and parameters, or of a checkpoint as it is published. A name is read part by
part; what a tower for images or sound holds belongs to the tower, and what an expert holds belongs to the expert.
"""

from __future__ import annotations

from collections.abc import Callable

ATTENTION, STATE_SPACE, MLP = "attention", "state space", "mlp"
EXPERTS, SHARED_EXPERTS, ROUTER = "experts", "shared experts", "router"
EMBEDDING, HEAD, VISION, AUDIO, OTHER = "embedding", "head", "vision", "audio", "other"
KINDS = (ATTENTION, STATE_SPACE, MLP, EXPERTS, SHARED_EXPERTS, ROUTER, EMBEDDING, HEAD, VISION, AUDIO, OTHER)
"""Every kind, in the order of a table. Attention holds linear attention, too; state space holds short convolutions;
other holds the norms between the blocks, and what no rule names."""

_IN_BLOCK = {
    "q_proj": ATTENTION, "k_proj": ATTENTION, "v_proj": ATTENTION, "o_proj": ATTENTION, "qkv_proj": ATTENTION,
    "query_key_value": ATTENTION, "Wqkv": ATTENTION,
    "gate_proj": MLP, "up_proj": MLP, "down_proj": MLP, "gate_up_proj": MLP, "fc1": MLP, "fc2": MLP, "w1": MLP,
    "w2": MLP, "w3": MLP, "wi": MLP, "wi_0": MLP, "wi_1": MLP, "dense_h_to_4h": MLP, "dense_4h_to_h": MLP,
    "fc1_latent_proj": MLP, "fc2_latent_proj": MLP,
}  # fmt: skip
"""Kind by the last part of a matrix's name, where no block around it tells (OPT's `fc1`, Nemotron-H's `mixer`)."""
_TOWERS = {
    "visual": VISION, "vision": VISION, "vpm": VISION, "multi_modal_projector": VISION, "mm_projector": VISION,
    "connector": VISION, "merger": VISION, "resampler": VISION, "qformer": VISION, "perceiver": VISION,
    "aligner": VISION, "image_newline": VISION, "view_separator": VISION, "language_projection": VISION,
    "query_tokens": VISION, "embed_vision": VISION, "vision_embed_tokens": VISION, "mm_soft_emb_norm": VISION,
    "embed_audio": AUDIO, "speech": AUDIO, "audio": AUDIO,
}  # fmt: skip
_BLOCKS = {
    "self_attn": ATTENTION, "attn": ATTENTION, "attention": ATTENTION, "self_attention": ATTENTION,
    "linear_attn": ATTENTION, "cross_attn": ATTENTION, "encoder_attn": ATTENTION, "SelfAttention": ATTENTION,
    "EncDecAttention": ATTENTION, "norm_attn_norm": ATTENTION, "self_attention_layer": ATTENTION,
    "mamba": STATE_SPACE, "mixer": STATE_SPACE, "ssm": STATE_SPACE, "conv": STATE_SPACE, "short_conv": STATE_SPACE,
    "temporal_block": STATE_SPACE, "mlstm_layer": STATE_SPACE,
    "mlp": MLP, "block_sparse_moe": MLP, "feed_forward": MLP, "ffn": MLP, "ff": MLP, "mlp_block": MLP,
    "DenseReluDense": MLP,
}  # fmt: skip
_EXPERTS = frozenset({"experts", "expert", "moe"})
_PARALLEL = frozenset({"input_linear", "output_linear"})
"""All experts of a layer in one matrix, directly in its mixture (Granite, JetMoe)."""
_SHARED = frozenset({"shared_expert", "shared_experts", "shared_mlp"})
_ROUTERS = frozenset(
    {"router", "modality_router", "shared_expert_gate", "moe_statics", "e_score_correction_bias", "expert_bias"}
)
_EMBEDDINGS = frozenset(
    {
        "embed_tokens", "embed_tokens_per_layer", "embed_positions", "embed_in", "embeddings", "embedding", "wte",
        "word_embeddings", "word_embeddings_layernorm", "tok_embeddings", "token_embedding", "ngram_embeddings",
        "embed_text_tokens", "shared", "wpe",
    }
)  # fmt: skip
_HEADS = frozenset({"lm_head", "embed_out", "score", "classifier", "lm_heads"})


def kind_of(name: str) -> str:
    """The kind of a module or parameter, one of `KINDS`.

    Args:
        name: in full, such as `model.layers.0.mlp.experts.gate_up_proj` or `model.layers.0.self_attn.q_proj.weight`.
    """
    parts = [part for part in name.split(".") if not part.isdigit() and part not in ("weight", "bias")]
    rules: tuple[Callable[[list[str]], str | None], ...] = (_tower, _of_mixture, _head_or_embedding, _block)
    return next((kind for rule in rules if (kind := rule(parts))), OTHER)


def _tower(parts: list[str]) -> str | None:
    for part in parts:
        word = part.split("_")[0]
        if kind := _TOWERS.get(part) or (_TOWERS.get(word) if word in ("vision", "audio", "speech") else None):
            return kind
    return None


def _head_or_embedding(parts: list[str]) -> str | None:
    if not _HEADS.isdisjoint(parts):
        return HEAD
    return EMBEDDING if not _EMBEDDINGS.isdisjoint(parts) else None


def _of_mixture(parts: list[str]) -> str | None:
    """The router is asked for before the experts, because some models keep it among them."""
    in_attention = any(_BLOCKS.get(part) == ATTENTION for part in parts)
    if not _ROUTERS.isdisjoint(parts) or ("gate" in parts and not in_attention):
        return ROUTER
    if not _SHARED.isdisjoint(parts):
        return SHARED_EXPERTS
    parallel = "block_sparse_moe" in parts and not _PARALLEL.isdisjoint(parts)
    return EXPERTS if parallel or not _EXPERTS.isdisjoint(parts) else None


def _block(parts: list[str]) -> str | None:
    """The innermost block that has a kind; in a mixer, whose kind depends on the layer, the matrix decides."""
    for part in reversed(parts):
        kind = _BLOCKS.get(part)
        if kind == STATE_SPACE and parts[-1] in _IN_BLOCK:
            return _IN_BLOCK[parts[-1]]
        if kind:
            return kind
    return _IN_BLOCK.get(parts[-1]) if parts else None
