"""Decoders without experts, and the variants of checkpoints: tied, biased, sharded, odd widths, other dtypes."""

from __future__ import annotations

from tests.architectures.blueprint import TOKENS, Blueprint, decoder
from tests.architectures.vocabulary import VOCABULARY

SLIDING = ["sliding_attention", "full_attention"]
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, **TOKENS}

DENSE = {
    "llama": Blueprint("LlamaConfig", decoder()),
    "llama-tied": Blueprint("LlamaConfig", decoder(tie_word_embeddings=True)),
    "llama-float16": Blueprint("LlamaConfig", decoder(), dtype="float16"),
    "llama-float32": Blueprint("LlamaConfig", decoder(), dtype="float32"),
    "llama-bias": Blueprint("LlamaConfig", decoder(attention_bias=True, mlp_bias=True)),
    "llama-sharded": Blueprint("LlamaConfig", decoder(), shard="60KB"),
    "llama-odd": Blueprint(
        "LlamaConfig",
        decoder(hidden_size=72, intermediate_size=104, num_attention_heads=3, num_key_value_heads=1, head_dim=24),
    ),
    "mistral": Blueprint("MistralConfig", decoder(sliding_window=16)),
    "ministral3": Blueprint("Ministral3Config", decoder(head_dim=16)),
    "qwen2": Blueprint("Qwen2Config", decoder()),
    "qwen3": Blueprint("Qwen3Config", decoder(head_dim=16)),
    "gemma2": Blueprint("Gemma2Config", decoder(head_dim=16, sliding_window=16, tie_word_embeddings=True)),
    "gemma3-text": Blueprint(
        "Gemma3TextConfig", decoder(head_dim=16, sliding_window=16, layer_types=SLIDING, tie_word_embeddings=True)
    ),
    "gemma3n-text": Blueprint(
        "Gemma3nTextConfig",
        decoder(
            head_dim=16,
            num_hidden_layers=4,
            intermediate_size=[96] * 4,
            sliding_window=16,
            layer_types=SLIDING * 2,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=32,
            laurel_rank=32,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * 4,
            tie_word_embeddings=True,
        ),
    ),
    "gemma4-text": Blueprint(
        "Gemma4TextConfig",
        decoder(
            head_dim=16,
            global_head_dim=32,
            num_hidden_layers=4,
            sliding_window=16,
            layer_types=SLIDING * 2,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=32,
            tie_word_embeddings=True,
        ),
    ),
    "phi3": Blueprint("Phi3Config", decoder(original_max_position_embeddings=128)),
    "smollm3": Blueprint("SmolLM3Config", decoder(no_rope_layer_interval=2)),
    "olmo2": Blueprint("Olmo2Config", decoder()),
    "olmo3": Blueprint("Olmo3Config", decoder(sliding_window=16, layer_types=SLIDING)),
    "granite": Blueprint("GraniteConfig", decoder(embedding_multiplier=2.0, residual_multiplier=0.5)),
    "glm4": Blueprint("Glm4Config", decoder(head_dim=16)),
    "cohere2": Blueprint("Cohere2Config", decoder(sliding_window=16, layer_types=SLIDING, tie_word_embeddings=True)),
    "nemotron": Blueprint("NemotronConfig", decoder()),
    "exaone4": Blueprint("Exaone4Config", decoder(sliding_window=16, layer_types=SLIDING)),
    "seed-oss": Blueprint("SeedOssConfig", decoder(head_dim=16)),
    "ernie4.5": Blueprint("Ernie4_5Config", decoder(head_dim=16)),
    "hunyuan-dense": Blueprint("HunYuanDenseV1Config", decoder(head_dim=16)),
    "starcoder2": Blueprint("Starcoder2Config", decoder(use_bias=True)),
    "stablelm": Blueprint("StableLmConfig", decoder(use_qkv_bias=True)),
    "apertus": Blueprint("ApertusConfig", decoder()),
    "arcee": Blueprint("ArceeConfig", decoder(head_dim=16)),
    "gemma": Blueprint("GemmaConfig", decoder(head_dim=16, tie_word_embeddings=True)),
    "cohere": Blueprint("CohereConfig", decoder(tie_word_embeddings=True, use_qk_norm=True)),
    "phi": Blueprint("PhiConfig", decoder()),
    "gptj": Blueprint("GPTJConfig", {**GPT2, "rotary_dim": 8, "tie_word_embeddings": False}),
    "mpt": Blueprint(
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, **TOKENS},
    ),
    "falcon": Blueprint(
        "FalconConfig",
        decoder(ffn_hidden_size=96, intermediate_size=None, num_key_value_heads=None, multi_query=True),
    ),
    "gpt2": Blueprint("GPT2Config", GPT2),
    "gpt-bigcode": Blueprint("GPTBigCodeConfig", GPT2),
    "gpt-neox": Blueprint("GPTNeoXConfig", decoder(num_key_value_heads=None)),
    "opt": Blueprint(
        "OPTConfig",
        decoder(
            ffn_dim=96,
            word_embed_proj_dim=64,
            intermediate_size=None,
            num_key_value_heads=None,
            tie_word_embeddings=True,
        ),
    ),
    "bloom": Blueprint(
        "BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **TOKENS}
    ),
}
