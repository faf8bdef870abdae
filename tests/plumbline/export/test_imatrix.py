"""The importance matrix, read back by a parser written here after llama.cpp's loader and by gguf's own reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from plumbline.activation_stats import store
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.export.imatrix import write_imatrix
from plumbline.export.tensor_names import Place, architecture_of, blocks_of, llama_cpp_places

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install -c constraints.txt -e '.[gguf]'")

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[type, type, str]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, "llama"),
    "mistral": (MistralConfig, MistralForCausalLM, "llama"),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, "qwen2"),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, "qwen3"),
    "gpt2": (GPT2Config, GPT2LMHeadModel, "gpt2"),
    "gemma": (GemmaConfig, GemmaForCausalLM, "gemma"),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, "gemma2"),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, "gemma3"),
    "granite": (GraniteConfig, GraniteForCausalLM, "granite"),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, "olmo2"),
    "phi3": (Phi3Config, Phi3ForCausalLM, "phi3"),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, "smollm3"),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM, "starcoder2"),
}
MIXTURES: dict[str, tuple[type, type, str]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, "llama"),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, "qwen2moe"),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, "qwen3moe"),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, "olmoe"),
}
GPT2_SHAPE: dict[str, Any] = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = 4
OUTPUTS = dict.fromkeys([*FAMILIES, *MIXTURES], ("k_proj",)) | {"gpt2": ("mlp.c_fc",), "phi3": ("o_proj",)}
DIGEST = "d" * 64
LENGTHS = (50, 10, 37)


def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config, model, _ = (FAMILIES | MIXTURES)[family]
    if family == "gpt2":
        return model(config(**GPT2_SHAPE)).eval()
    more: dict[str, Any] = {} if family == "qwen2" else {"head_dim": 16}
    if family in MIXTURES:
        more |= {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80}
        more["num_local_experts" if family == "mixtral" else "num_experts"] = EXPERTS
    return model(config(**SHAPE, **more, pad_token_id=None)).eval()


def samples() -> list[tuple[str, list[int]]]:
    rng = np.random.default_rng(1)
    return [(f"s{i}", rng.integers(0, 96, size=length).tolist()) for i, length in enumerate(LENGTHS)]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    """written(family) -> the model, and the imatrix of what it saw."""

    def write(family: str) -> tuple[PreTrainedModel, Path]:
        model = tiny(family)
        model.save_pretrained(tmp_path / "model")
        stats = collect(
            model, samples(), StatisticsParams(outputs=OUTPUTS[family]), base_model_digest=DIGEST, fingerprint="f" * 64
        )
        (tmp_path / "stats").mkdir()
        store.save(stats, tmp_path / "stats", {"base_model": {"name": "x"}, "calibration_set": "c" * 64})
        file = tmp_path / "imatrix.gguf"
        write_imatrix(tmp_path / "stats", tmp_path / "model", DIGEST, "mine", file)
        return model, file

    return write


def as_llama_cpp_loads_it(file: Path) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, list[int]]]]:
    """Keys, and per entry (sums, counts): `common_imatrix_load` of llama.cpp (common/imatrix-loader.cpp) retold.

    It refuses what that refuses: missing keys, a sum without counts, other types than F32, an offset that is not
    aligned to 32 bytes.
    """
    with file.open("rb") as data:
        assert data.read(4) == b"GGUF" and unpack(data, "<I") == 3
        tensors, keys = unpack(data, "<Q"), unpack(data, "<Q")
        about = {text(data): value(data, unpack(data, "<I")) for _ in range(keys)}
        infos = []
        for _ in range(tensors):
            name = text(data)
            shape = [unpack(data, "<Q") for _ in range(unpack(data, "<I"))]
            infos.append((name, shape, unpack(data, "<I"), unpack(data, "<Q")))
        start = -(-data.tell() // 32) * 32
        halves: dict[str, dict[str, np.ndarray]] = {}
        for name, shape, kind, offset in infos:
            assert kind == 0 and offset % 32 == 0 and len(name) < 64
            data.seek(start + offset)
            weight, _, what = name.rpartition(".")
            # in ggml's order of dimensions: (width, matrices) and (1, matrices)
            assert len(shape) == 2 and (what == "in_sum2" or shape[0] == 1)
            halves.setdefault(weight, {})[what] = np.frombuffer(data.read(4 * int(np.prod(shape))), "<f4")
    assert {"imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"} <= set(about)
    assert all(set(half) == {"in_sum2", "counts"} for half in halves.values())
    return about, {
        name: (half["in_sum2"], [round(float(count)) for count in half["counts"]]) for name, half in halves.items()
    }


def unpack(data: BinaryIO, kind: str) -> int:
    (number,) = struct.unpack(kind, data.read(struct.calcsize(kind)))
    return int(number)


def text(data: BinaryIO) -> str:
    return data.read(unpack(data, "<Q")).decode()


def value(data: BinaryIO, kind: int) -> Any:
    if kind == 9:
        of, count = unpack(data, "<I"), unpack(data, "<Q")
        return [value(data, of) for _ in range(count)]
    return text(data) if kind == 8 else unpack(data, {4: "<I"}[kind])


def seen(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Sum of x^2 per Linear, in float64, by hooks of this file."""
    sums: dict[str, np.ndarray] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach().double().reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, 0) + x.square().sum(0).numpy()

        return hook

    handles = [
        m.register_forward_pre_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)
    ]
    with torch.no_grad():
        for _, ids in samples():
            model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return sums


PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""As the table in llama.cpp's docs for these architectures has them."""
OTHER_PARTS = {
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"},
    "starcoder2": {name: ours for name, ours in PARTS.items() if name.startswith("self_attn")}
    | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
}  # fmt: skip
GPT2_PARTS = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_every_layer_has_the_squares_of_what_it_reads(
    family: str, written: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, file = written(family)
    _, entries = as_llama_cpp_loads_it(file)
    expected = seen(model)
    prefix, parts = "model.layers", OTHER_PARTS.get(family, PARTS)
    if family == "gpt2":
        prefix, parts = "transformer.h", GPT2_PARTS
    assert set(entries) == {f"blk.{layer}.{name}.weight" for layer in range(2) for name in parts.values()}
    for layer in range(2):
        for theirs, ours in parts.items():
            sums, counts = entries[f"blk.{layer}.{ours}.weight"]
            assert counts == [sum(LENGTHS)]
            np.testing.assert_allclose(sums, expected[f"{prefix}.{layer}.{theirs}"], rtol=1e-5)


def routed(model: PreTrainedModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per block and weight the squares that each expert reads and its tokens, by the formulas of a mixture."""
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def watch(block: int, experts: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
            x, chosen = [*args, *options.values()][:2]
            x = x.reshape(-1, x.shape[-1]).double()
            for number in range(EXPERTS):
                tokens = x[(chosen.reshape(len(x), -1) == number).any(-1)]
                gate, up = (tokens @ experts.gate_up_proj[number].double().T).chunk(2, -1)
                inner = nn.functional.silu(gate) * up
                for part, read in (("gate", tokens), ("up", tokens), ("down", inner)):
                    squares, counts = sums.setdefault(
                        f"blk.{block}.ffn_{part}_exps.weight", (np.zeros((EXPERTS, read.shape[-1])), np.zeros(EXPERTS))
                    )
                    squares[number] += read.square().sum(0).detach().numpy()
                    counts[number] += len(tokens)

        return hook

    for block, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        experts.register_forward_pre_hook(watch(block, experts), with_kwargs=True)
    with torch.no_grad():
        for _, ids in samples():
            model(torch.tensor([ids]))
    return sums


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_merged_into_a_tensor_with_a_count_each(
    family: str, written: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, file = written(family)
    _, entries = as_llama_cpp_loads_it(file)
    expected = routed(model)
    assert set(expected) <= set(entries) and "blk.1.attn_q.weight" in entries
    assert ("blk.0.ffn_up_shexp.weight" in entries) == (family == "qwen2_moe"), "the shared expert is no routed one"
    for name, (squares, counts) in expected.items():
        found, tokens = entries[name]
        assert tokens == counts.tolist() and sum(tokens) == 2 * sum(LENGTHS), "two experts a token"
        np.testing.assert_allclose(found.reshape(EXPERTS, -1), squares, rtol=1e-4, atol=1e-9)


def test_an_expert_that_no_token_reached_has_zeros_and_the_others_their_own_rows(
    written: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    _, file = written("qwen3_moe")
    stats = store.load(tmp_path / "stats")
    lost = [f"model.layers.0.mlp.experts.2.{part}" for part in ("gate_up_proj", "down_proj")]
    sites = {name: site for name, site in stats.sites.items() if not set(site.members) & set(lost)}
    assert len(sites) == len(stats.sites) - 2
    (tmp_path / "fewer").mkdir()
    fewer = replace(stats, sites=sites, unreached=tuple(lost))
    store.save(fewer, tmp_path / "fewer", {"base_model": {"name": "x"}, "calibration_set": "c" * 64})
    facts = write_imatrix(tmp_path / "fewer", tmp_path / "model", DIGEST, "mine", tmp_path / "fewer.gguf")
    assert facts["unreached"] == 2
    before, after = (as_llama_cpp_loads_it(one)[1] for one in (file, tmp_path / "fewer.gguf"))
    for name in before:
        rows, counts = (before[name][0].reshape(len(before[name][1]), -1).copy(), list(before[name][1]))
        if name in {f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}:
            rows[2], counts[2] = 0, 0
        assert after[name][1] == counts
        np.testing.assert_array_equal(after[name][0].reshape(rows.shape), rows)


def test_the_keys_are_llama_cpps_and_name_no_path(
    written: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    _, file = written("llama")
    about, _ = as_llama_cpp_loads_it(file)
    assert about["general.type"] == "imatrix"
    assert about["imatrix.datasets"] == [f"plumbline calibration set mine, sha256 {'c' * 64}"]
    # llama.cpp: a chunk is as many tokens as fit a context, and chunks = tokens / chunk size
    assert about["imatrix.chunk_size"] == max(LENGTHS) and about["imatrix.chunk_count"] == sum(LENGTHS) // max(LENGTHS)
    assert str(tmp_path).encode() not in file.read_bytes() and b"/" not in file.read_bytes()[:400]


def test_ggufs_own_reader_finds_the_same(written: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    _, file = written("llama")
    _, entries = as_llama_cpp_loads_it(file)
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.type").contents() == "imatrix"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(entries)
    for name, (sums, counts) in entries.items():
        assert tensors[f"{name}.in_sum2"].data.tolist() == [sums.tolist()]
        assert tensors[f"{name}.counts"].data.tolist() == [counts]


def test_the_same_statistics_give_the_same_bytes(
    written: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    _, file = written("llama")
    again = tmp_path / "again.gguf"
    write_imatrix(tmp_path / "stats", tmp_path / "model", DIGEST, "mine", again)
    assert again.read_bytes() == file.read_bytes()


def test_refusals_name_the_reason(written: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path) -> None:
    _, file = written("llama")
    out = tmp_path / "new.gguf"
    with pytest.raises(FileExistsError, match="name a new file"):
        write_imatrix(tmp_path / "stats", tmp_path / "model", DIGEST, "mine", file)
    with pytest.raises(ValueError, match="collected with another model"):
        write_imatrix(tmp_path / "stats", tmp_path / "model", "e" * 64, "mine", out)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["GptOssForCausalLM"]}))
    with pytest.raises(ValueError, match="GptOssForCausalLM; an imatrix is written for GPT2LMHeadModel, Gemma2For"):
        write_imatrix(tmp_path / "stats", tmp_path / "model", DIGEST, "mine", out)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    stats = store.load(tmp_path / "stats")
    store.save(replace(stats, unreached=("model.layers.1.mlp.down_proj",)), tmp_path / "stats", {"calibration_set": ""})
    with pytest.raises(ValueError, match="no token of mine reached model.layers.1.mlp.down_proj"):
        write_imatrix(tmp_path / "stats", tmp_path / "model", DIGEST, "mine", out)
    assert not out.exists()


def test_a_layer_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="gguf has no name for model.layers.0.mlp.side_proj in architecture llama"):
        llama_cpp_places(["model.layers.0.mlp.up_proj", "model.layers.0.mlp.side_proj"], "llama", 1)
    experts = llama_cpp_places(["model.layers.0.mlp.experts.3.gate_up_proj"], "qwen3moe", 1)
    assert list(experts.values()) == [(Place("blk.0.ffn_gate_exps.weight", 3), Place("blk.0.ffn_up_exps.weight", 3))]
    assert architecture_of({"architectures": ["Qwen3ForCausalLM"]}) == "qwen3"
    with pytest.raises(ValueError, match="none of num_hidden_layers, n_layer"):
        blocks_of({"layers": 2})
