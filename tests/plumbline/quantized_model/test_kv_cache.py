"""FP8 keys and values: scales against compressed-tensors' arithmetic, reload equal to the bit, refusals by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, PreTrainedModel

from plumbline.activation_stats.sketch import ActivationStats, quantile
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.export import export
from plumbline.quantized_model.kv_cache import cache_scales, largest_of, round_states, scale_of
from plumbline.quantized_model.kv_cache_layers import cached_attention, without_cache
from plumbline.quantized_model.kv_cache_params import CacheParams
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate
from plumbline.quantized_model.suits import suited
from tests.architectures.catalogue import CATALOGUE
from tests.helpers.activations import statistics_of

ATTENTION = ("model.layers.0.self_attn", "model.layers.1.self_attn")
STRATEGIES = ("tensor", "attn_head")
W4: dict[str, Any] = {"method": "rtn", "weight_bits": 4, "group_size": 32}


def scheme_of(base: dict[str, Any] = W4, **kv_cache: Any) -> SchemeParams:
    return SchemeParams.model_validate({**base, "kv_cache": kv_cache})


@pytest.fixture(scope="module")
def cached(llama: LlamaForCausalLM, tokens: Tensor) -> ActivationStats:
    return statistics_of(llama, tokens, cache=True)


def quantized_by(model: PreTrainedModel, stats: ActivationStats, scheme: SchemeParams, tokens: Tensor) -> Quantized:
    samples = [(f"{row:03}", ids) for row, ids in enumerate(tokens.tolist())]
    return apply_scheme(model, stats, scheme, lambda: (samples, None))


@torch.no_grad()
def own_cache(model: PreTrainedModel, tokens: Tensor) -> DynamicCache:
    cache = DynamicCache()
    model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache


def written(
    model: PreTrainedModel, quantized: Quantized, scheme: SchemeParams, root: Path
) -> tuple[Path, dict[str, Tensor]]:
    """The exported folder and its tensors."""
    (out := root / "out").mkdir()
    files = export(model, quantized, scheme, root, out)
    return out, {key: value for file in files for key, value in load_file(out / file).items()}


def args(strategy: str) -> QuantizationArgs:
    return QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, dynamic=False)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scales_are_those_of_compressed_tensors(
    llama: LlamaForCausalLM, cached: ActivationStats, tokens: Tensor, strategy: str
) -> None:
    scales = cache_scales(llama, cached, CacheParams(strategy=strategy), {})
    assert tuple(scales) == ATTENTION
    # sample by sample, as the statistics were collected
    caches = [own_cache(llama, row[None]) for row in tokens]
    for layer, name in enumerate(ATTENTION):
        for part, scale in (("keys", scales[name].keys), ("values", scales[name].values)):
            states = torch.cat([getattr(cache.layers[layer], part) for cache in caches])  # (b, heads, t, d)
            dims = (0, 2, 3) if strategy == "attn_head" else (0, 1, 2, 3)
            low, high = states.amin(dims, keepdim=True)[0], states.amax(dims, keepdim=True)[0]
            shape = (2, 1, 1) if strategy == "attn_head" else (1,)
            expected, _ = calculate_qparams(low.view(shape), high.view(shape), args(strategy))
            assert scale.dtype == llama.dtype and torch.equal(scale, expected), (name, part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rounding_is_that_of_compressed_tensors(strategy: str, dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 50, 8, generator=torch.Generator().manual_seed(0)) * 40).to(dtype)
    scale = torch.tensor([0.05, 0.11, 0.2], dtype=dtype).view(3, 1, 1)
    scale = scale if strategy == "attn_head" else scale[1].view(1)
    expected = fake_quantize(x, scale, None, args(strategy))  # type: ignore[arg-type]
    assert torch.equal(round_states(x, scale), expected) and not torch.equal(x, expected)
    assert float(round_states(x, scale / 100).abs().max()) == float((scale / 100).max() * 448)  # clipped, not infinite


def test_a_scale_of_nothing_is_the_smallest_step() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        expected, _ = calculate_qparams(torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype), args("tensor"))
        assert torch.equal(scale_of(torch.zeros(1, dtype=torch.float64), dtype), expected)


def test_a_percentile_counts_the_channels_of_its_head(cached: ActivationStats) -> None:
    site = cached.sites[f"{ATTENTION[0]}:k"]
    params = CacheParams(range="percentile", percentile=95)
    assert site.histogram is not None
    for heads in (1, 2):
        parts = [slice(head * site.width // heads, (head + 1) * site.width // heads) for head in range(heads)]
        alone = [
            replace(
                site,
                sum=site.sum[part],
                sample_min=site.sample_min[:, part],
                sample_max=site.sample_max[:, part],
                histogram=replace(site.histogram, counts=site.histogram.counts[part]),
            )
            for part in parts
        ]
        expected = torch.stack([quantile(one, 0.95, absolute=True) for one in alone])
        found = largest_of(site, heads, params)
        assert torch.equal(found, expected)
        assert bool((found < largest_of(site, heads, CacheParams())).all())


@pytest.mark.parametrize(
    ("base", "strategy"),
    [
        (W4, "tensor"),
        (W4, "attn_head"),
        ({"method": "gptq", "weight_bits": 3, "group_size": 32, "propagate": "quantized"}, "attn_head"),
        ({"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}}, "tensor"),
    ],
    ids=["w4, tensor", "w4, heads", "propagated, heads", "w8a8, tensor"],
)
@torch.no_grad()
def test_the_folder_loads_equal_to_the_simulation(
    llama: LlamaForCausalLM, cached: ActivationStats, tokens: Tensor, base: Any, strategy: str, tmp_path: Path
) -> None:
    scheme = scheme_of(base, strategy=strategy, range="percentile", percentile=99.0)
    quantized = quantized_by(llama, cached, scheme, tokens)
    out, stored = written(llama, quantized, scheme, tmp_path)
    assert require_loads(out, llama, quantized, scheme, tokens[0].tolist()) == {"tokens": 48}
    config = json.loads((out / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    said = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    assert {key: config[key] for key in said} == said
    for name in ATTENTION:
        for part, scale in (("k", quantized.cache[name].keys), ("v", quantized.cache[name].values)):
            tensor = stored[f"{name}.{part}_scale"]
            assert tensor.dtype == torch.float32 and torch.equal(tensor, scale.float())
            assert tuple(tensor.shape) == ((1,) if strategy == "tensor" else (2, 1, 1))
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=llama.dtype).eval()
    simulated = simulate(llama, quantized, scheme)
    for use_cache in (False, True):
        mine, theirs = (m(input_ids=tokens[:2], use_cache=use_cache).logits for m in (simulated, loaded))
        assert torch.equal(mine, theirs)
    full = simulate(llama, replace(quantized, cache={}), scheme)
    assert not torch.equal(full(input_ids=tokens[:2]).logits, mine)  # the cache is not the weights' rounding alone


def test_the_load_check_sees_a_wrong_scale(
    llama: LlamaForCausalLM, cached: ActivationStats, tokens: Tensor, tmp_path: Path
) -> None:
    scheme = scheme_of()
    quantized = quantized_by(llama, cached, scheme, tokens)
    wrong = {name: replace(own, values=own.values * 3) for name, own in quantized.cache.items()}
    out, _ = written(llama, replace(quantized, cache=wrong), scheme, tmp_path)
    with pytest.raises(ValueError, match="does not compute what was quantized"):
        require_loads(out, llama, quantized, scheme, tokens[0].tolist())


def test_the_load_check_sees_a_missing_scale(
    llama: LlamaForCausalLM, cached: ActivationStats, tokens: Tensor, tmp_path: Path
) -> None:
    scheme = scheme_of()
    quantized = quantized_by(llama, cached, scheme, tokens)
    fewer = {ATTENTION[0]: quantized.cache[ATTENTION[0]]}
    out, _ = written(llama, replace(quantized, cache=fewer), scheme, tmp_path)
    with pytest.raises(ValueError, match=r"missing keys: model\.layers\.1\.self_attn\.k_scale"):
        require_loads(out, llama, quantized, scheme, tokens[0].tolist())


@torch.no_grad()
def test_a_transform_that_folds_into_values_moves_their_range(make_llama: Any, tokens: Tensor) -> None:
    model = make_llama(torch.float32)
    stats = statistics_of(model, tokens, cache=True)
    scheme = scheme_of({**W4, "weight_bits": 3, "transform": "awq"})
    quantized = quantized_by(model, stats, scheme, tokens)
    folded = [name for name in ATTENTION if f"{name}.v_proj" in quantized.rows]
    assert folded, "awq folded nothing into v_proj: the test shows nothing"
    plain = cache_scales(model, stats, scheme.kv_cache, {})
    for name in folded:
        weight = model.get_submodule(f"{name}.v_proj").weight / quantized.rows[f"{name}.v_proj"][:, None]
        values = torch.cat([own_cache_input(model, name, row) @ weight.T for row in tokens])
        assert float(quantized.cache[name].values) == pytest.approx(float(values.abs().max() / 448), rel=1e-5)
        assert not torch.equal(quantized.cache[name].values, plain[name].values)
        assert torch.equal(quantized.cache[name].keys, plain[name].keys)


def own_cache_input(model: PreTrainedModel, name: str, ids: Tensor) -> Tensor:
    """What v_proj of the base model reads, (tokens, width)."""
    seen: list[Tensor] = []
    hook = model.get_submodule(f"{name}.v_proj").register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    model(input_ids=ids[None], use_cache=False)
    hook.remove()
    return seen[0]


def test_statistics_without_keys_and_values_are_refused_before_the_work(
    llama: LlamaForCausalLM, stats: ActivationStats, tokens: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"statistics: \{cache: true\} in params.yaml.*one more forward pass"):
        quantized_by(llama, stats, scheme_of(), tokens)
    # scales of 1 read nothing
    quantized = quantized_by(llama, stats, scheme_of(range="unit", strategy="attn_head"), tokens)
    assert all(bool((own.keys == 1).all()) and own.values.shape == (2, 1, 1) for own in quantized.cache.values())


REFUSED = {
    "deepseek-v3": ("tensor", "model.layers.0.self_attn keeps a latent"),
    "kimi-linear": ("tensor", "model.layers.1.self_attn keeps a latent"),
    "longcat-flash": ("tensor", "keeps a latent"),
    "mamba": ("tensor", "has no attention whose cache"),
    "gpt-neox": ("tensor", "has no attention whose cache"),
    "minimax": ("tensor", "MiniMaxLightningAttention"),
    "llama4-text": ("tensor", "asks its cache for get_seq_length"),
    "opt": ("tensor", "num_key_value_heads"),
    "gemma4-text": ("tensor", "head_dim"),
    "mimo-v2-flash": ("attn_head", "has an attribute k_scale or v_scale of its own"),
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_caches_that_no_engine_would_fill_with_these_are_refused_by_name(architecture: str) -> None:
    strategy, reason = REFUSED[architecture]
    with torch.device("meta"):
        blueprint = CATALOGUE[architecture]
        model = blueprint.auto.from_config(blueprint.configuration())
    with pytest.raises(ValueError, match=reason):
        cached_attention(model, CacheParams(strategy=strategy))


def test_heads_that_differ_between_layers_are_refused_per_head_only(make_llama: Any) -> None:
    model = make_llama(torch.float32)
    model.config.num_key_value_heads = 4  # as a configuration that speaks for other layers
    assert len(cached_attention(model, CacheParams())) == 2
    with pytest.raises(ValueError, match="has 2 heads of keys, and config.json says 4"):
        cached_attention(model, CacheParams(strategy="attn_head"))


def test_a_model_that_is_decompressed_while_loading_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="decompressed while transformers loads it"):
        suited(llama, scheme_of({**W4, "symmetric": False}))
    suited(llama, SchemeParams.model_validate({**W4, "symmetric": False}))


WITHOUT = {
    "qwen3-next": {"model.layers.0": "Qwen3NextGatedDeltaNet: keeps a state of fixed size, and no keys and values"},
    "jamba": {"model.layers.0": "JambaMambaMixer: keeps a state of fixed size, and no keys and values"},
    "gemma3-text": {},
    "llama": {},
}


@pytest.mark.parametrize("architecture", WITHOUT)
def test_layers_without_keys_and_values_are_named(architecture: str) -> None:
    blueprint = CATALOGUE[architecture]
    with torch.device("meta"):
        model = blueprint.auto.from_config(blueprint.configuration())
    assert without_cache(model) == WITHOUT[architecture]


def test_layers_that_share_keys_and_values_are_named() -> None:
    blueprint = CATALOGUE["gemma3n-text"]
    with torch.device("meta"):
        model = blueprint.auto.from_config(blueprint.configuration())
    reason = "Gemma3nTextAttention: attends to the keys and values of an earlier layer, and has no scales"
    assert without_cache(model) == {"model.layers.2": reason, "model.layers.3": reason}


def test_parameters_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="kv_cache.percentile acts with"):
        CacheParams(percentile=99.0)
    for wrong in ({"bits": 4}, {"type": "int"}, {"strategy": "channel"}, {"range": "mse"}, {"symmetric": False}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CacheParams.model_validate(wrong)


def test_what_is_read_and_what_is_said() -> None:
    assert scheme_of().reads == ("cache",)
    assert scheme_of(range="percentile").reads == ("cache", "histogram")
    assert scheme_of(range="unit").reads == ()
    assert any("--kv-cache-dtype fp8" in remark for remark in scheme_of().remarks)
    assert SchemeParams.model_validate(W4).remarks == []
