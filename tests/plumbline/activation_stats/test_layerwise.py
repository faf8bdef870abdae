"""Layer by layer against one model in memory: the same bits, and less of it."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.layerwise import CollectionInputs, guarded, layer_by_layer
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, SiteStats
from plumbline.activation_stats.totals import Masks
from plumbline.base_model.decoder import Call
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = ["full_attention", "sliding_attention", "full_attention"]
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, sliding_window=8, use_sliding_window=True, layer_types=KINDS),
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gemma4": Gemma4TextConfig(
        **SIZES,
        head_dim=8,
        global_head_dim=16,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=50,
        num_kv_shared_layers=0,
        layer_types=KINDS,
    ),
    "llama4, experts one by one": Llama4TextConfig(
        **SIZES,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        pad_token_id=0,
    ),
    "gpt2": GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=3, n_positions=64, bos_token_id=0, eos_token_id=0),
    "opt": OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        max_position_embeddings=64,
    ),
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model in files of at most 20 KB."""
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        model = AutoModelForCausalLM.from_config(config, dtype=request.param)
        model.save_pretrained(found[name], max_shard_size="20KB")
        assert len(list(found[name].glob("*.safetensors"))) > 1
    return found


def joined(parts: list[ActivationStats]) -> ActivationStats:
    def both(a: ActivationStats, b: ActivationStats) -> ActivationStats:
        assert not set(a.sites) & set(b.sites) and a.sample_ids == b.sample_ids
        return replace(a, sites={**a.sites, **b.sites}, unreached=(*a.unreached, *b.unreached))

    whole = reduce(both, parts)
    return replace(whole, sites=dict(sorted(whole.sites.items())), unreached=tuple(sorted(whole.unreached)))


def layerwise(
    folder: Path, samples: Any, settings: StatisticsParams, scratch: Path, masks: Masks | None = None, **more: Any
) -> ActivationStats:
    inputs = CollectionInputs(samples, settings, "model", "tokenizer", masks)
    return joined(list(layer_by_layer(StreamedModel(folder), inputs, scratch, **more)))


def ordinary(folder: Path, samples: Any, settings: StatisticsParams, **more: Any) -> ActivationStats:
    return collect(load_model(folder), samples, settings, base_model_digest="model", fingerprint="tokenizer", **more)


def assert_identical(a: ActivationStats, b: ActivationStats) -> None:
    """Down to the last bit."""
    assert a.sample_ids == b.sample_ids and a.unreached == b.unreached and list(a.sites) == list(b.sites)
    assert torch.equal(a.sample_tokens, b.sample_tokens)
    for name, x in a.sites.items():
        y = b.sites[name]
        assert torch.equal(x.histogram.counts, y.histogram.counts) and x.histogram.first == y.histogram.first
        for field in fields(SiteStats):
            left, right = getattr(x, field.name), getattr(y, field.name)
            if field.name != "histogram":
                assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, (name, field.name)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shards": 4},
        {"ignore": ()},
        {"outputs": ("lm_head", "re:.*(layers|h).1$", "re:.*(embed_tokens|wte)$")},
        {"cache": True, "shards": 2},
    ],
    ids=["one shard", "four shards", "lm_head", "outputs", "cache"],
)
def test_same_bits_as_the_model_in_memory(
    folders: dict[str, Path], name: str, settings: dict[str, Any], samples: Any, tmp_path: Path
) -> None:
    chosen = StatisticsParams(**settings)
    expected = ordinary(folders[name], samples, chosen)
    assert_identical(layerwise(folders[name], samples, chosen, tmp_path), expected)
    if name == "opt":
        assert "model.decoder.project_in" in expected.sites
    if settings == {"ignore": ()}:
        assert "lm_head" in expected.sites


def test_same_bits_with_hidden_states_on_disk_and_few_tokens_counted(
    folders: dict[str, Path], samples: Any, tmp_path: Path
) -> None:
    masks = {sample_id: torch.arange(len(ids)) % 3 == 0 for sample_id, ids in samples[1:]}
    expected = ordinary(folders["llama"], samples, StatisticsParams(), masks=masks)
    site = expected.sites["model.layers.0.mlp.down_proj"]
    assert site.sample_tokens.tolist() == [7, 11, 1, 7, 11, 22]
    for in_memory in (0, 5000):
        found = layerwise(folders["llama"], samples, StatisticsParams(), tmp_path, masks=masks, in_memory=in_memory)
        assert_identical(found, expected)
    assert not list(tmp_path.iterdir())


def test_same_bits_when_masks_are_too_many_to_keep(
    folders: dict[str, Path], samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plumbline.base_model.decoder_calls.KEPT_BYTES", 1)
    expected = ordinary(folders["qwen2"], samples, StatisticsParams())
    assert_identical(layerwise(folders["qwen2"], samples, StatisticsParams(), tmp_path), expected)


def test_parts_come_layer_by_layer_and_only_their_layer_is_there(
    folders: dict[str, Path], samples: Any, tmp_path: Path
) -> None:
    streamed, progress = StreamedModel(folders["llama"]), list[int]()
    inputs = CollectionInputs(samples, StatisticsParams(), "", "")
    parts = layer_by_layer(streamed, inputs, tmp_path, progress.append)
    for number, part in enumerate(parts):
        assert all(site.startswith(f"model.layers.{number}.") for site in part.sites)
        assert all(weight.is_meta for weight in streamed.model.parameters())
    assert progress == [len(ids) for _, ids in samples] * 3


def test_what_collect_refuses_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample zz holds token 50"):
        layerwise(folders["llama"], [("zz", [50])], StatisticsParams(), tmp_path)
    with pytest.raises(ValueError, match="no samples"):
        layerwise(folders["llama"], [], StatisticsParams(), tmp_path)


def test_hidden_states_come_back_from_memory_and_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(rng.normal(size=(1, 3 + i, 5))).to(torch.bfloat16) for i in range(4)]
    with HiddenStates(80, tmp_path) as hidden:
        for _ in range(2):
            for row, x in enumerate(rows):
                hidden[row] = x
            assert all(torch.equal(hidden[row], x) and hidden[row].dtype == x.dtype for row, x in enumerate(rows))
            rows = [-x.transpose(0, 1).reshape(x.shape) for x in rows]
        assert hidden.on_disk == sum(2 * x.numel() for x in rows[2:])  # 30 + 40 bytes stay, 50 and 60 go
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("in_memory", [0, 300, 10_000])
def test_hidden_states_may_change_their_shape_and_dtype(in_memory: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(in_memory)
    expected: dict[int, Tensor] = {}
    with HiddenStates(in_memory, tmp_path) as hidden:
        for _ in range(300):
            dtype = (torch.bfloat16, torch.float32, torch.float64)[rng.integers(3)]
            row, length = int(rng.integers(8)), int(rng.integers(1, 8))
            hidden[row] = expected[row] = torch.from_numpy(rng.normal(size=(1, length, 3))).to(dtype)
            assert all(hidden[row].dtype == x.dtype and torch.equal(hidden[row], x) for row, x in expected.items())
            assert sum(x.nbytes for x in hidden._kept.values()) == in_memory - hidden.left <= in_memory


def test_a_layer_that_widens_its_hidden_states_keeps_them_apart_on_disk(samples: Any, tmp_path: Path) -> None:
    """Mamba's residual is float32 where its weights are bfloat16."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3}
    config = Mamba2Config(**sizes, num_heads=4, head_dim=16, state_size=8, n_groups=2, residual_in_fp32=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "mamba2")
    expected = ordinary(tmp_path / "mamba2", samples, StatisticsParams())
    for in_memory in (0, 5000, 1 << 30):
        found = layerwise(tmp_path / "mamba2", samples, StatisticsParams(), tmp_path, in_memory=in_memory)
        assert_identical(found, expected)


def test_calls_that_depend_on_the_tokens_are_asked_for_anew(
    folders: dict[str, Path], samples: Any, tmp_path: Path
) -> None:
    """Two samples have 33 tokens, and here their position embeddings differ."""

    def turned(module: torch.nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple((1 + args[0].float().mean() * 50).to(angle.dtype) * angle for angle in out)

    streamed, whole = StreamedModel(folders["llama"]), load_model(folders["llama"])
    for model in (streamed.model, whole):
        model.model.rotary_emb.register_forward_hook(turned)
    origin = {"base_model_digest": "model", "fingerprint": "tokenizer"}
    expected = collect(whole, samples, StatisticsParams(), **origin)
    inputs = CollectionInputs(samples, StatisticsParams(), **origin)
    found = joined(list(layer_by_layer(streamed, inputs, tmp_path)))
    assert_identical(found, expected)


def test_a_site_that_decoder_layers_share_is_refused() -> None:
    seen: list[str] = []
    calls = DecoderCalls(None)  # type: ignore[arg-type]
    given, own = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    calls.current = (Call((), {"states": (given,)}),)
    visit = guarded(lambda site, x, positions: seen.append(site), calls)
    visit("fine", own, None)
    with pytest.raises(ValueError, match="layer 'shared' reads what its decoder layer is called with .*mode: whole"):
        visit("shared", given, None)
    assert seen == ["fine"]
