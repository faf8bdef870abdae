"""The arguments of the decoder layers for each sample, cached by length where they depend on the length alone."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from plumbline.base_model.decoder import Call, Decoder, Ids

KEPT_BYTES = 256 << 20
"""Bytes of masks and position embeddings that are kept in memory."""


class DecoderCalls:
    """The arguments of the layers for each sample.

    They usually depend on the number of tokens alone, and are cached by it. Every sample is compared with the cache.
    Once two samples of one length differ, the model is run for each sample instead.
    """

    def __init__(
        self, decoder: Decoder, weights_present: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """
        Args:
            weights_present: context in which the weights outside the layers are in memory.
        """
        self.decoder, self.weights_present = decoder, weights_present
        self.digests: dict[Any, str] = {}
        self.kept: OrderedDict[Any, tuple[Call, ...]] = OrderedDict()
        self.size = 0
        self.by_length = True
        self.current: tuple[Call, ...] = ()

    def begin(self, ids: Ids) -> Tensor:
        """Input of the first layer. Call it once for each sample while the weights outside the layers are in memory."""
        start = self.decoder.start(ids)
        if self.by_length:
            digest = _digest([(call.positional, call.keywords) for call in start.calls], {})
            if self.digests.setdefault(_length(ids), digest) == digest:
                self._keep(_length(ids), start.calls)
            else:
                self.by_length = False
                self.kept.clear()
        return start.hidden

    def call(self, number: int, ids: Ids) -> Call:
        """The arguments of layer `number`."""
        if not self.by_length or _length(ids) not in self.kept:
            with self.weights_present():
                self.current = self.decoder.start(ids).calls
            if self.by_length:
                self._keep(_length(ids), self.current)
        else:
            self.current = self.kept[_length(ids)]
        return self.current[number]

    def hold(self, x: Tensor) -> bool:
        """Whether this tensor is an argument of the current sample's layers besides the hidden states."""
        return x.data_ptr() in {tensor.data_ptr() for tensor in _tensors_of(self.current)}

    def _keep(self, length: Any, calls: tuple[Call, ...]) -> None:
        if length in self.kept:
            return
        self.kept[length] = calls
        self.size += _size(calls)
        while self.size > KEPT_BYTES and len(self.kept) > 1:
            self.size -= _size(self.kept.popitem(last=False)[1])


def _length(ids: Ids) -> Any:
    """What the arguments of the layers usually depend on alone: the number of tokens, or the shape of a batch."""
    return tuple(ids.shape) if isinstance(ids, Tensor) else len(ids)


def _tensors_of(calls: Sequence[Call]) -> Iterator[Tensor]:
    for call in calls:
        yield from _tensors((call.positional, call.keywords))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _size(calls: Sequence[Call]) -> int:
    sizes = {id(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors_of(calls)}
    return sum(sizes.values())


def _digest(value: Any, seen: dict[int, str]) -> str:
    """SHA-256 (hex) of arguments of layers; `seen` caches the digests of tensors, which layers share."""
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
