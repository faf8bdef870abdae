"""What attention caches, against the cache of transformers itself: after rotation and norms, and without a change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from plumbline.base_model.cache import KEYS, VALUES, caching_modules, channels, exchanged, hand_cache, is_latent
from plumbline.base_model.inputs import LinearInputs
from tests.architectures.catalogue import CATALOGUE

IDS = torch.tensor([[5, 9, 3, 70, 11, 42, 8, 20, 33, 6]])
ATTENTION = {
    "llama": (0, 1),
    "qwen3": (0, 1),
    "gemma3-text": (0, 1),
    "gemma4-text": (0, 1),
    "phi3": (0, 1),
    "qwen3-next": (1,),
    "jamba": (1,),
    "opt": (0, 1),
}
"""Architecture -> its layers that cache keys and values."""


def build(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    blueprint = CATALOGUE[architecture]
    model: PreTrainedModel = blueprint.auto.from_config(blueprint.configuration(), dtype=torch.float32)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ATTENTION)
def test_keys_and_values_are_those_of_transformers_own_cache(architecture: str) -> None:
    model = build(architecture)
    modules = caching_modules(model)
    assert [module.layer_idx for module in modules.values()] == list(ATTENTION[architecture])
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with exchanged(modules, lambda name, keys, values: seen.update({name: (keys, values)})):
        logits = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(logits, model(input_ids=IDS, use_cache=False).logits)
    own = model(input_ids=IDS, use_cache=True).past_key_values
    assert list(seen) == list(modules)
    for name, module in modules.items():
        layer = own.layers[module.layer_idx]
        assert torch.equal(seen[name][0], layer.keys) and torch.equal(seen[name][1], layer.values), name


@pytest.mark.parametrize("architecture", ["deepseek-v3", "kimi-linear", "longcat-flash", "minimax", "mamba", "llama4"])
def test_a_latent_a_state_and_a_tower_are_no_keys_and_values(architecture: str) -> None:
    model = build(architecture)
    found = [type(module).__name__ for module in caching_modules(model).values()]
    expected = {"minimax": ["MiniMaxAttention"], "llama4": ["Llama4TextAttention"] * 2}
    assert found == expected.get(architecture, [])
    latent = any(map(is_latent, model.modules()))
    assert latent == (architecture in ("deepseek-v3", "kimi-linear", "longcat-flash"))


@torch.no_grad()
def test_a_model_that_brings_a_cache_keeps_what_the_exchange_returns() -> None:
    model = build("llama")
    handles = [hand_cache(module, lambda k, v: (k * 2, v * 3)) for module in caching_modules(model).values()]
    own = DynamicCache()
    doubled = model(input_ids=IDS, past_key_values=own, use_cache=True).logits
    assert torch.equal(doubled, model(input_ids=IDS, use_cache=False).logits)
    step = model(input_ids=IDS[:, -1:], past_key_values=own, use_cache=True).logits
    longer = model(input_ids=torch.cat([IDS, IDS[:, -1:]], 1), use_cache=False).logits
    torch.testing.assert_close(step[:, 0], longer[:, -1])
    for handle in handles:
        handle.remove()
    plain = DynamicCache()
    assert not torch.equal(model(input_ids=IDS, past_key_values=plain, use_cache=True).logits, doubled)
    assert torch.equal(own.layers[0].keys[:, :, : IDS.shape[1]], 2 * plain.layers[0].keys)
    assert torch.equal(own.layers[0].values[:, :, : IDS.shape[1]], 3 * plain.layers[0].values)


class Positional(nn.Module):
    """An attention that is called with its cache by position."""

    def forward(self, hidden: Tensor, mask: Any, past_key_values: Any = None) -> Tensor:
        keys, values = past_key_values.update(hidden, hidden + 1, 0)
        return keys + values


def test_a_cache_that_is_passed_by_position_is_replaced() -> None:
    attention, x = Positional(), torch.zeros(1, 2, 3, 4)
    with exchanged({"a": attention}, lambda *_: None):
        assert torch.equal(attention(x, None, None), x + 1)
        assert torch.equal(attention(x, None, past_key_values=None), x + 1)
    with pytest.raises(AttributeError):
        attention(x, None, None)


def test_the_channels_of_a_site_are_the_heads_one_after_the_other() -> None:
    states = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)  # 2 heads, 3 tokens, head width 4
    x = channels(states)
    assert x.shape == (1, 3, 8)
    assert x[0, 1].tolist() == [*states[0, 0, 1].tolist(), *states[0, 1, 1].tolist()]


@torch.no_grad()
def test_linear_inputs_visit_both_sites_of_a_layer() -> None:
    model = build("llama")
    seen: dict[str, Tensor] = {}
    inputs = LinearInputs({}, lambda site, x, _: seen.update({site: x}), caching=caching_modules(model))
    with inputs.hooked():
        inputs.begin("a", IDS.shape[1])
        model(input_ids=IDS, use_cache=False)
    names = [f"model.layers.{number}.self_attn{part}" for number in (0, 1) for part in (KEYS, VALUES)]
    assert list(seen) == names and inputs.members() == {name: (name,) for name in names}
    keys = model(input_ids=IDS, use_cache=True).past_key_values.layers[1].keys
    assert torch.equal(seen[names[2]], channels(keys))
