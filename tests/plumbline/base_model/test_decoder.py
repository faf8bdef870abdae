"""Layers one at a time against the ordinary forward pass, bit by bit, for every way in which models call theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3nTextConfig, Gemma4TextConfig, PreTrainedConfig, PreTrainedModel

from plumbline.base_model.bfloat16 import wide_products
from plumbline.base_model.decoder import Call, Decoder, same


@torch.no_grad()
def outputs(model: PreTrainedModel, layers: nn.ModuleList, tokens: list[int]) -> tuple[list[Tensor], Tensor]:
    """What every layer returned during an ordinary forward pass, and the logits."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    with wide_products(model):  # as Plumbline multiplies on this processor
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return seen, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_after_layer_is_the_ordinary_pass(config: Any, built: Any, ids: Any, dtype: torch.dtype) -> None:
    model = built(config, dtype)
    decoder = Decoder(model)
    assert [model.get_submodule(layer) for layer in decoder.names] == list(decoder.layers)
    for n in (1, 7, 40):
        tokens = ids(n)
        seen, ordinary = outputs(model, decoder.layers, tokens)
        start = decoder.start(tokens)
        hidden = start.hidden
        for number, call in enumerate(start.calls):
            hidden = decoder.run(number, hidden, call)
            assert torch.equal(hidden, seen[number])
        assert torch.equal(decoder.logits(tokens, hidden), ordinary)
        with torch.no_grad(), wide_products(model):
            finished = model.base_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state
        assert torch.equal(decoder.finish(tokens, hidden), finished)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_layers_get_the_mask_of_their_own_kind_of_attention(configs: Any, built: Any, ids: Any) -> None:
    calls = Decoder(built(configs["qwen2, both kinds of attention"])).start(ids(20)).calls
    masks = [call.keywords["attention_mask"] for call in calls]
    assert same(masks[0], masks[2]) and not same(masks[0], masks[1])
    assert masks[1].squeeze().sum(-1).tolist() == [min(i + 1, 8) for i in range(20)]


def test_no_layer_runs_for_the_start(configs: Any, built: Any, ids: Any) -> None:
    model = built(configs["llama"])
    for layer in model.model.layers:
        layer.to_empty(device="meta")
    start = Decoder(model).start(ids(5))
    assert torch.equal(start.hidden, model.model.embed_tokens(torch.tensor([ids(5)])))


class Between(nn.Module):
    """Stands for a model's decoder; `twist` is what it does before layer 1."""

    def __init__(self, twist: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.layers = nn.ModuleList([Linearly(), Linearly()])
        self.twist = twist

    def forward(self, input_ids: Tensor, use_cache: bool) -> tuple[Tensor]:
        hidden = self.embedding(input_ids)
        hidden = self.layers[0](hidden, None)
        return (self.twist(self.layers[1], hidden),)


class Linearly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor, extra: object) -> Tensor:
        return self.map(hidden_states)


class Model(nn.Module):
    config = PreTrainedConfig()

    def __init__(self, twist: Any) -> None:
        super().__init__()
        self.base_model = Between(twist)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (lambda layer, x: layer(2 * x, None), "base_model.layers.1 does not read what base_model.layers.0 returned"),
        (lambda layer, x: layer(x, x.sum()), "what base_model.layers.1 is called with depends on an earlier layer's"),
        (lambda layer, x: layer(x, {}), "base_model.layers.1 is called with an empty dict, by which layers may talk"),
        (lambda layer, x: layer(x, object()), "base_model.layers.1 is called with a object"),
        (lambda layer, x: x, "1 of its 2 layers were called"),
        (lambda layer, x: layer(layer(x, None), None), "base_model.layers.1 is call 2 of a layer"),
    ],
)
def test_models_that_do_more_than_hand_on_are_refused(twist: Any, reason: str) -> None:
    model: Any = Model(twist)
    with pytest.raises(ValueError, match=f"Model cannot be run layer by layer: {reason}.*mode: whole"):
        Decoder(model).start([1, 2])
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_without_layers_is_refused() -> None:
    model: Any = Model(None)
    model.base_model.layers = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Model has no list of decoder layers"):
        Decoder(model)


@pytest.mark.parametrize("kind", [Gemma3nTextConfig, Gemma4TextConfig])
def test_layers_that_read_keys_of_earlier_ones_are_refused_with_the_reason(kind: Any, built: Any) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50,
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    if kind is Gemma3nTextConfig:
        sizes |= {"altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4}
    with pytest.raises(
        ValueError, match=r"its last 2 of 4 layers .* attend to keys and values .*`execution: \{mode: wh"
    ):
        Decoder(built(kind(**sizes)))


def test_calls_are_compared_bit_by_bit() -> None:
    one = Call((torch.ones(2), None), {"mask": (torch.zeros(1), 3)})
    assert same(one, Call((torch.ones(2), None), {"mask": (torch.zeros(1), 3)}))
    assert not same(one, Call((torch.ones(2), None), {"mask": (torch.ones(1), 3)}))
    assert not same(one, Call((torch.ones(2),), {"mask": (torch.zeros(1), 3)}))
    assert not same(one, Call((torch.ones(2, dtype=torch.float64), None), {"mask": (torch.zeros(1), 3)}))
