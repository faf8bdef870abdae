"""The inputs of a model's linear layers during a forward pass, each distinct one once: q, k and v share theirs."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Visit = Callable[[str, Tensor, Tensor | None], None]
"""(name of the site, its activations (..., width), their positions): the site is named by the layer that read them
first. Positions, int64 (rows,), say which token of the sample each row is; None: the rows are its tokens in order."""


def linear_layers(model: nn.Module, ignore: Sequence[str]) -> dict[str, nn.Module]:
    """Every Linear and Conv1D by name, without the ignored ones.

    Args:
        ignore: a module's full name, its end after a dot, or a regular expression after "re:".

    Raises:
        ValueError: none is left.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(_matches(name, entry) for entry in ignore)
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv1D besides those that statistics.ignore in params.yaml "
            f"names ({', '.join(ignore)})"
        )
    return layers


def _matches(name: str, entry: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry[3:], name) is not None
    return name == entry or name.endswith("." + entry)


def network_of(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> nn.Module:
    """What to call so that all of `layers` run: the decoder alone, without the vocabulary logits, where that does."""
    decoder = model.base_model
    inside = {id(module) for module in decoder.modules()}
    return decoder if all(id(layer) in inside for layer in layers.values()) else model


def require_readable(model: PreTrainedModel, sample_id: str, ids: Sequence[int]) -> None:
    """Refuse what the model cannot read.

    Raises:
        ValueError: no tokens, more of them than the model reads, or one that it does not know.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not len(ids):
        raise ValueError(f"sample {sample_id} has no tokens; drop it from the set")
    if longest is not None and len(ids) > longest:
        raise ValueError(
            f"sample {sample_id} has {len(ids)} tokens, the model reads at most {longest}; lower "
            "tokenize.max_length in params.yaml"
        )
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(
            f"sample {sample_id} holds token {max(ids) if min(ids) >= 0 else min(ids)}, the model knows 0 to "
            f"{vocabulary - 1}; the set was tokenized for another model"
        )


def require_finite(site: str, sample_id: str, *extremes: Tensor) -> None:
    """Refuse activations that are not finite.

    Args:
        extremes: a value per channel (width,) each, inf or NaN where one of the channel's activations is.

    Raises:
        ValueError: names site, channel, sample and what to do.
    """
    finite = torch.stack([torch.isfinite(values) for values in extremes]).all(dim=0)
    if not bool(finite.all()):
        raise ValueError(
            f"site {site!r}, channel {int((~finite).nonzero()[0])}: the base model computes inf or NaN for sample "
            f"{sample_id}; store it in bfloat16 or float32 (float16 overflows at 65504), or take the sample out"
        )


class LinearInputs:
    """Finds out which layers share an input, and shows each distinct input once."""

    def __init__(self, layers: Mapping[str, nn.Module], visit: Visit) -> None:
        self.layers, self.visit = layers, visit
        self.site_of: dict[str, str] = {}
        """Layer -> its site, in the order in which the layers first ran."""
        self.sample_id = ""
        self.seen: dict[tuple[Any, ...], tuple[weakref.ref[Tensor], int, str]] = {}

    def begin(self, sample_id: str) -> None:
        """Call before each forward pass."""
        self.sample_id = sample_id
        self.seen.clear()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the layers while inside."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def members(self) -> dict[str, tuple[str, ...]]:
        """Site -> the layers that read it, both in the order of the forward pass."""
        members: dict[str, list[str]] = {}
        for layer, site in self.site_of.items():
            members.setdefault(site, []).append(layer)
        return {site: tuple(layers) for site, layers in members.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            if x.numel() == 0:  # an expert without a token
                return
            site = self._site(name, x)
            if self.site_of.setdefault(name, site) != site:
                raise ValueError(
                    f"layer {name!r} reads the input of {site!r} for sample {self.sample_id}, before it read that of "
                    f"{self.site_of[name]!r}; statistics are kept per input, so the layers that share one must not "
                    "change: add it to statistics.ignore in params.yaml"
                )
            if site == name:
                self.visit(site, x, None)

        return observe

    def _site(self, name: str, x: Tensor) -> str:
        """The layer that read this very tensor first in this forward pass."""
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if key in self.seen:
            earlier, version, site = self.seen[key]
            # Dead: the memory was given to another tensor. Another version: it was written to in between.
            if earlier() is not None and version == x._version:
                return site
        self.seen[key] = (weakref.ref(x), x._version, name)
        return name
