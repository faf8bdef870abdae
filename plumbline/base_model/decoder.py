"""Runs the decoder layers of a language model one at a time, with the arguments that the model calls them with.

The model's own code around the layers runs unchanged. Meanwhile stand-ins replace the layers: they record their
arguments and return the hidden states. So every layer gets the mask, the position embeddings and all else that its
model passes to it (a sliding window here, full attention there), and none of that is implemented twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import KVSharingDict

from plumbline.base_model.as_quantized import is_replaced
from plumbline.base_model.bfloat16 import wide_products
from plumbline.base_model.language import hidden_states_network, language_part, text_config
from plumbline.base_model.threads import settle_threads

HIDDEN = "hidden_states"


class UnreadStore(KVSharingDict):  # type: ignore[misc]
    """Takes the place of the store in which layers leave keys and values for later ones, in models where none reads it.

    It keeps nothing, so a call with it can be recorded and repeated. Such models are Gemma 4 without shared layers.
    """

    def __setitem__(self, key: str, item: tuple[Tensor, ...]) -> None:
        pass


Ids = Sequence[int] | Tensor
"""The token ids of one sequence, or of a batch of sequences (batch, tokens) int64; then "1" in shapes is the batch."""
Handed = Callable[[int, Tensor], Tensor]
"""(layer number, hidden states it was called with) -> hidden states that its stand-in returns."""


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one layer besides the hidden states."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Start:
    """The inputs of the layers for one token sequence."""

    hidden: Tensor
    """(1, tokens, width): input of the first layer."""
    calls: tuple[Call, ...]
    """One per layer, in order; a tensor that the model passes to several layers is in all of their calls."""


class Decoder:
    """The decoder layers of a model; every call leaves the model as it was.

    For every token sequence, this computes the ordinary forward pass bit by bit:

        start = decoder.start(ids)
        hidden = start.hidden
        for number, call in enumerate(start.calls):
            hidden = decoder.run(number, hidden, call)
        logits = decoder.logits(ids, hidden)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the layers.

        Args:
            model: in evaluation mode. Weights may be on the meta device until they are needed: `start`, `finish` and
                `logits` need those outside the layers, `run` those of its layer.

        Raises:
            ValueError: the model has no list of layers, or later layers read keys and values of earlier ones.
        """
        settle_threads()
        self.model = model
        if experts := [name for name, module in model.named_modules() if is_replaced(module)]:
            raise ValueError(self._refusal(f"transformers holds {experts[0]} in another way in a quantized model"))
        config = text_config(model)
        if shared := getattr(config, "num_kv_shared_layers", None):
            raise ValueError(
                self._refusal(
                    f"its last {shared} of {config.num_hidden_layers} layers (num_kv_shared_layers in config.json) "
                    "attend to keys and values that earlier layers computed, so a layer needs more than hidden states"
                )
            )
        self.network = hidden_states_network(model)
        self.name, self.layers = decoder_layers(model)
        self.names = layer_names(model)
        """Full module names of the layers."""
        self._in_tuple = False
        """Whether the model's code expects a layer to return a tuple."""
        self._checked = False

    def start(self, ids: Ids) -> Start:
        """The inputs of the layers for one token sequence; no layer runs.

        Raises:
            ValueError: the model cannot be run layer by layer: it does more between its layers than pass on the hidden
                states, or a layer's arguments depend on an earlier layer's output.
        """
        self._require_chain(ids)
        hidden, calls, _ = self._pass(self.network, ids, lambda _, x: x)
        return Start(hidden, calls)

    def run(self, number: int, hidden: Tensor, call: Call) -> Tensor:
        """The output (1, tokens, width) of one layer for hidden states (1, tokens, width)."""
        return run_layer(self.layers[number], hidden, call)

    def finish(self, ids: Ids, hidden: Tensor) -> Tensor:
        """The base model's output for the last layer's output: usually the final norm, without vocabulary projection.

        Returns:
            (1, tokens, width).
        """
        return self._last(self.network, ids, hidden)[0]

    def logits(self, ids: Ids, hidden: Tensor) -> Tensor:
        """The logits (1, tokens, vocabulary) for the last layer's output."""
        return self._last(self.model, ids, hidden).logits

    def around(self, network: nn.Module, ids: Ids, hidden: Tensor) -> None:
        """Run all of `network` (the model or its base model) except the layers, so that its hooks fire."""
        self._last(network, ids, hidden)

    def _last(self, network: nn.Module, ids: Ids, hidden: Tensor) -> Any:
        self._require_chain(ids)
        last = len(self.layers) - 1
        return self._pass(network, ids, lambda number, x: hidden if number == last else x)[2]

    def _require_chain(self, ids: Ids) -> None:
        if not self._checked:
            self._check(ids)
            self._checked = True

    def _check(self, ids: Ids) -> None:
        """Find out whether layers return tuples, and refuse a model that cannot be run layer by layer."""
        reasons: list[Exception] = []
        for self._in_tuple in (False, True):
            try:
                _, calls, _ = self._pass(self.network, ids, lambda _, x: x)
                break
            except Exception as error:  # a model may fail on a tensor where it expects a tuple, or the reverse
                reasons.append(error)
        else:
            if isinstance(reasons[0], _Broken):
                raise ValueError(self._refusal(str(reasons[0]))) from reasons[1]
            problem = f"with its layers replaced its code fails ({type(reasons[0]).__name__}: {reasons[0]})"
            raise ValueError(self._refusal(problem)) from reasons[0]
        for call, name in zip(calls, self.names, strict=True):
            for value in (*call.positional, *call.keywords.values()):
                if strange := _strange(value):
                    raise ValueError(self._refusal(f"{name} is called with {strange}, by which layers may talk"))
        _, others, _ = self._pass(self.network, ids, lambda _, x: x + 1)
        for call, other, name in zip(calls, others, self.names, strict=True):
            if not same(call, other):
                raise ValueError(self._refusal(f"what {name} is called with depends on an earlier layer's output"))

    def _refusal(self, reason: str) -> str:
        return (
            f"{type(self.model).__name__} cannot be run layer by layer: {reason}. Say `execution: {{mode: whole}}` in "
            "params.yaml"
        )

    @torch.no_grad()
    def _pass(self, network: nn.Module, ids: Ids, handed: Handed) -> tuple[Tensor, tuple[Call, ...], Any]:
        """Run `network` once with stand-ins for the layers; returns (first hidden states, calls, output)."""
        calls: list[Call] = []
        first: list[Tensor] = []
        expected: list[Tensor] = []

        def stand_in(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs.pop(HIDDEN, None)
                if not isinstance(hidden, Tensor):
                    raise _Broken(f"{self.names[number]} is not called with its hidden states first")
                if number != len(calls):
                    raise _Broken(f"{self.names[number]} is call {len(calls)} of a layer")
                if expected and hidden is not expected[-1]:
                    raise _Broken(f"{self.names[number]} does not read what {self.names[number - 1]} returned")
                first.append(hidden)
                calls.append(Call(tuple(map(_recorded, args[1:])), {k: _recorded(v) for k, v in kwargs.items()}))
                expected.append(handed(number, hidden))
                return (expected[-1],) if self._in_tuple else expected[-1]

            return forward

        device = self.model.get_input_embeddings().weight.device
        with wide_products(network), _replaced(self.layers, stand_in):
            out = network(input_ids=_batch(ids).to(device), use_cache=False)
        if len(calls) != len(self.layers):
            raise _Broken(f"{len(calls)} of its {len(self.layers)} layers were called")
        return first[0], tuple(calls), out


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The output (1, tokens, width) of a decoder layer (the model's own or a copy) for hidden states of that shape."""
    with wide_products(layer):
        out = layer(hidden, *call.positional, **call.keywords)
    return out[0] if isinstance(out, tuple) else out


def _batch(ids: Ids) -> Tensor:
    return ids if isinstance(ids, Tensor) else torch.tensor([list(ids)])


class _Broken(ValueError):
    """The layers do not form a chain."""


def same(a: Any, b: Any) -> bool:
    """Whether two calls, or two of their arguments, are equal bit by bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, Call) and isinstance(b, Call):
        return same(a.positional, b.positional) and same(a.keywords, b.keywords)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return type(a) is type(b) and bool(a == b)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Full name and modules of the outermost ModuleList with the most parameters in the language model."""
    part = language_part(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and name.startswith(f"{part}." if part else "")
    }
    outermost = {
        name: module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists if other != name)
    }
    if not outermost:
        raise ValueError(
            f"{type(model).__name__} has no list of decoder layers (a ModuleList), so it cannot be run layer by layer. "
            "Say `execution: {mode: whole}` in params.yaml"
        )
    return max(outermost.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def layer_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Full module names of the decoder layers, in order. Raises as `decoder_layers`."""
    name, layers = decoder_layers(model)
    return tuple(f"{name}.{number}" for number in range(len(layers)))


def _recorded(value: Any) -> Any:
    """An argument as it is recorded."""
    return UnreadStore() if isinstance(value, KVSharingDict) else value


def _strange(value: Any) -> str:
    """Why an argument cannot be recorded and passed again; empty: it can."""
    if isinstance(value, (tuple, list)) and value:
        return next((found for found in map(_strange, value) if found), "")
    if isinstance(value, dict) and value:
        return next((found for found in map(_strange, value.values()) if found), "")
    if value is None or value == () or isinstance(value, (Tensor, bool, int, float, str, torch.dtype, UnreadStore)):
        return ""
    return f"an empty {type(value).__name__}" if isinstance(value, (dict, list)) else f"a {type(value).__name__}"


@contextmanager
def _replaced(layers: nn.ModuleList, stand_in: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Within the context, replace every layer's `forward` by its stand-in."""
    try:
        for number, layer in enumerate(layers):
            layer.__dict__["forward"] = stand_in(number)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
