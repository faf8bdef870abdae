"""Configurations of published models, from the hyperparameters that their authors give; no weights.

A value that is the default of the configuration class is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from plumbline.artifact import read_json
from plumbline.base_model.architecture import stored_dtype
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from plumbline.cli.plan import table
from plumbline.params import load_params
from plumbline.quantized_model.plan import plan_of

PROJECT = Path(__file__).resolve().parents[2]
SCHEMES = ("w4a16-gptq", "w8a8-dynamic")
"""Of params.yaml."""

GPT_OSS: dict[str, Any] = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_experts_per_tok": 4,
}


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        config: name of its configuration class in transformers.
        values: arguments of that class.
        billions: its weights as its authors count them, in 10^9.
    """

    config: str
    values: dict[str, Any]
    billions: float

    def configuration(self) -> Any:
        """The configuration, in bfloat16."""
        return getattr(transformers, self.config)(**self.values, dtype="bfloat16")


PUBLISHED = {
    "Qwen3-30B-A3B": Published(
        "Qwen3MoeConfig",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        30.5,
    ),
    "gpt-oss-20b": Published("GptOssConfig", {**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32}, 20.9),
    "gpt-oss-120b": Published("GptOssConfig", {**GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128}, 116.8),
    "Mixtral-8x7B": Published(
        "MixtralConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        46.7,
    ),
    "DeepSeek-V3": Published(
        "DeepseekV3Config",
        {
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        671.0,
    ),
    "Llama-4-Scout": Published(
        "Llama4Config",
        {
            "text_config": {
                "vocab_size": 202048,
                "hidden_size": 5120,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "num_hidden_layers": 48,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "num_local_experts": 16,
                "num_experts_per_tok": 1,
            },
            "vision_config": {
                "hidden_size": 1408,
                "intermediate_size": 5632,
                "num_hidden_layers": 34,
                "num_attention_heads": 16,
                "image_size": 336,
                "vision_output_dim": 4096,
            },
        },
        108.6,
    ),
    "Gemma-3-27B": Published(
        "Gemma3Config",
        {
            "text_config": {
                "vocab_size": 262208,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
            },
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 896,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
        27.4,
    ),
}


def lines(names: Sequence[str], schemes: Sequence[str] = SCHEMES) -> Iterator[str]:
    """Yield what `plumbline plan` prints for each, from a folder that holds config.json alone."""
    params = load_params(PROJECT)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            PUBLISHED[name].configuration().save_pretrained(folder)
            model = BaseCheckpoint.of(ModelParams(name=folder)).skeleton()
            dtype = stored_dtype(read_json(Path(folder) / "config.json"))
        yield f"{name}: {type(model).__name__}"
        for scheme in schemes:
            try:
                yield from table(scheme, plan_of(model, params.schemes[scheme], dtype))
            except ValueError as error:
                yield f"{scheme}: refused: {error}"
                left = params.schemes[scheme].model_copy(update={"experts": "full_precision"})
                yield from table(f"{scheme}, experts: full_precision", plan_of(model, left, dtype))
        yield ""
