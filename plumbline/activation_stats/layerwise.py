"""Statistics of a model that does not fit into memory: all samples through one decoder layer, then through the next.

In memory at a time: the weights of one layer, the totals of its sites, and the hidden states of the samples, which go
to disk where they are too many. The bits are those of `collect`, since every sample goes through the same operations
one by one, and every sum has the same order.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.totals import Masks, Sample, Totals, in_order
from plumbline.base_model.decoder import Call, Decoder
from plumbline.base_model.inputs import LinearInputs, Visit, network_of, output_layers, watched_layers
from plumbline.base_model.streamed import StreamedModel

IN_MEMORY = 4 << 30
"""Bytes of hidden states that are kept in memory."""
CALLS = 256 << 20
"""Bytes of masks and position embeddings that are kept in memory."""

Run = Callable[[int, Sequence[int], LinearInputs], None]
"""(row, token ids, what watches the layers) -> None: one sample through what is in memory."""


def layer_by_layer(
    streamed: StreamedModel,
    samples: Sequence[Sample],
    settings: StatisticsParams,
    scratch: Path,
    *,
    base_model_digest: str,
    fingerprint: str,
    progress: Callable[[int], object] | None = None,
    masks: Masks | None = None,
    in_memory: int = IN_MEMORY,
) -> Iterator[ActivationStats]:
    """What `collect` returns, in parts: the sites of each decoder layer, then those outside the layers.

    Args:
        scratch: an existing folder for hidden states beyond `in_memory` bytes.
        progress: called after each sample and layer with the sample's number of tokens.

    Raises:
        ValueError: whatever `collect` refuses, or a model that cannot be run layer by layer.
    """
    model, decoder = streamed.model, Decoder(streamed.model)
    ordered = in_order(model, samples)
    layers, outputs = watched_layers(model, settings.ignore), output_layers(model, settings.outputs)
    network = network_of(model, {**layers, **outputs})
    around = _around(model, network, decoder)
    calls = _Calls(streamed, decoder, around)

    def observed(inside: Callable[[str], bool], present: Callable[[str], bool], run: Run) -> ActivationStats:
        watched = {name: module for name, module in layers.items() if inside(name)}
        shown = {name: module for name, module in outputs.items() if inside(name)}
        totals = Totals(ordered, settings, base_model_digest, fingerprint, masks)
        inputs = LinearInputs(watched, calls.guarded(totals.add), shown)
        with streamed.present(present):
            for row, (sample_id, ids) in enumerate(totals.samples()):
                inputs.begin(sample_id, len(ids))
                run(row, ids, inputs)
                if progress is not None:
                    progress(len(ids))
        return totals.result(inputs.members(), watched)

    def through(number: int, row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
        x, call = hidden[row].to(streamed.device), calls.of(number, ids)
        with inputs.hooked():
            hidden[row] = decoder.run(number, x, call)

    def finish(row: int, ids: Sequence[int], inputs: LinearInputs) -> None:
        with inputs.hooked():
            decoder.around(network, ids, hidden[row].to(streamed.device))

    with HiddenStates(in_memory, scratch) as hidden:
        with streamed.present(around):
            for row, (_, ids) in enumerate(ordered):
                hidden[row] = calls.begin(ids)
        for number, name in enumerate(decoder.names):
            within = _within(name)
            yield observed(within, within, partial(through, number))

        def outside(name: str) -> bool:
            return not _within(decoder.name)(name)

        if any(map(outside, (*layers, *outputs))):
            yield observed(outside, around, finish)


def _within(module: str) -> Callable[[str], bool]:
    """Whether a name is that of the module or of something in it."""
    return lambda name: name == module or name.startswith(f"{module}.")


def _around(model: nn.Module, network: nn.Module, decoder: Decoder) -> Callable[[str], bool]:
    """Which weights are needed outside the layers: those of `network`, so not an output projection nobody looks at."""
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is network)
    return lambda weight: weight.startswith(prefix) and not _within(decoder.name)(weight)


class _Calls:
    """What the layers are called with for each sample.

    As a rule that depends on the number of tokens alone, and is kept by it. It is looked at for every sample; where
    two of one length differ, the model is asked again each time.
    """

    def __init__(self, streamed: StreamedModel, decoder: Decoder, around: Callable[[str], bool]) -> None:
        self.streamed, self.decoder, self.around = streamed, decoder, around
        self.digests: dict[int, str] = {}
        self.kept: OrderedDict[int, tuple[Call, ...]] = OrderedDict()
        self.size = 0
        self.by_length = True
        self.current: tuple[Call, ...] = ()

    def begin(self, ids: Sequence[int]) -> Tensor:
        """The first layer's hidden states, once the weights around the layers are there."""
        start = self.decoder.start(ids)
        if self.by_length:
            found = _digest([(call.positional, call.keywords) for call in start.calls], {})
            if self.digests.setdefault(len(ids), found) == found:
                self._keep(len(ids), start.calls)
            else:
                self.by_length = False
                self.kept.clear()
        return start.hidden

    def of(self, number: int, ids: Sequence[int]) -> Call:
        """What layer `number` is called with."""
        if not self.by_length or len(ids) not in self.kept:
            with self.streamed.present(self.around):
                found = self.decoder.start(ids).calls
            if self.by_length:
                self._keep(len(ids), found)
            self.current = found
        else:
            self.current = self.kept[len(ids)]
        return self.current[number]

    def guarded(self, visit: Visit) -> Visit:
        """Refuse a site that layers share, which `collect` would count once and this once per layer."""

        def guard(site: str, x: Tensor, positions: Tensor | None) -> None:
            given = {
                tensor.data_ptr() for call in self.current for tensor in _tensors((call.positional, call.keywords))
            }
            if x.data_ptr() in given:
                raise ValueError(
                    f"layer {site!r} reads what its decoder layer is called with besides the hidden states, so decoder "
                    "layers share a site; say `execution: {mode: whole}` in params.yaml"
                )
            visit(site, x, positions)

        return guard

    def _keep(self, length: int, calls: tuple[Call, ...]) -> None:
        if length in self.kept:
            return
        self.kept[length] = calls
        self.size += _size(calls)
        while self.size > CALLS and len(self.kept) > 1:
            self.size -= _size(self.kept.popitem(last=False)[1])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _size(calls: tuple[Call, ...]) -> int:
    found = {id(x): x.numel() * x.element_size() for call in calls for x in _tensors((call.positional, call.keywords))}
    return sum(found.values())


def _digest(value: Any, seen: dict[int, str]) -> str:
    """SHA-256 (hex) of what layers are called with; `seen` remembers tensors, which layers share."""
    if isinstance(value, Tensor):
        if id(value) not in seen:
            x = value.detach().cpu().contiguous()
            content = hashlib.sha256(x.view(-1).view(torch.uint8).numpy().data).hexdigest()
            seen[id(value)] = f"{x.dtype}{tuple(x.shape)}{content}"
        return seen[id(value)]
    if isinstance(value, (tuple, list)):
        text = " ".join(_digest(item, seen) for item in value)
    elif isinstance(value, dict):
        text = " ".join(f"{key}={_digest(item, seen)}" for key, item in sorted(value.items()))
    else:
        text = repr(value)
    return hashlib.sha256(text.encode()).hexdigest()
