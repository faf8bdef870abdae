"""The keys and values that attention hands to its cache: after rotation and norms, before heads are repeated.

Each layer that keeps a cache has two sites, `<attention>:k` and `<attention>:v`. Their channels are the heads one after
the other, (heads * head width). They are seen by a cache that stores nothing, which takes the place of the model's own.

Two kinds of layers have none. Those with latent attention (DeepSeek's MLA) keep a compressed latent, which engines
cache instead of the keys and values that transformers computes from it; and layers with a recurrent state keep no
entry per token.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

KEYS, VALUES = ":k", ":v"
"""Suffixes of the names of the two sites of an attention module."""
ARGUMENTS = ("past_key_values", "past_key_value")
"""Names of the argument of an attention module's `forward` that holds the cache."""
PROJECTIONS = ("k_proj", "v_proj", "qkv_proj")
"""Children of an attention module that compute keys and values, where compressed-tensors quantizes the cache."""
LATENT = re.compile(r"kv_[ab]_proj")
"""Matches the children of an attention module that compress keys and values, and that expand them again."""
UPDATES = re.compile(r"\.update\(")
"""Matches the call with which an attention module hands keys and values to its cache."""

Exchange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys, values) as (batch, heads, tokens, head width) -> those that attention goes on with."""


class PassingCache(DynamicCache):  # type: ignore[misc]
    """A cache that stores nothing and stays empty: attention gets what `exchange` makes of its keys and values."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.exchange(key_states, value_states)


def caching_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules that hand keys and values to a cache, by name in the model's order; none with a latent."""
    return {
        name: module
        for name, module in model.named_modules()
        if takes_cache(module)
        and any(hasattr(module, part) for part in PROJECTIONS)
        and not is_latent(module)
        and UPDATES.search(_source(module))
    }


def takes_cache(module: nn.Module) -> bool:
    """Whether a module is an attention that is called with a cache."""
    return "attention" in type(module).__name__.lower() and argument_of(module) is not None


def is_latent(module: nn.Module) -> bool:
    """Whether a module compresses keys and values into a latent, as DeepSeek's multi-head latent attention does."""
    return any(LATENT.match(name) for name, _ in module.named_children())


def argument_of(module: nn.Module) -> str | None:
    """The name of the argument of a module's `forward` that holds the cache; None: there is none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ARGUMENTS if name in parameters), None)


@contextmanager
def exchanged(modules: Mapping[str, nn.Module], exchange: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Within the context, show `exchange` the name, keys and values of every module that is about to cache them."""

    def seen(name: str) -> Exchange:
        def show(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            exchange(name, keys, values)
            return keys, values

        return show

    handles = [hand_cache(module, seen(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hand_cache(module: nn.Module, exchange: Exchange) -> RemovableHandle:
    """Call an attention module with a `PassingCache` from now on, until the handle is removed.

    A model that is called with a cache of its own keeps using it, for what `exchange` returns.
    """
    name = argument_of(module)
    assert name is not None
    place = list(inspect.signature(module.forward).parameters).index(name)
    passing = PassingCache(exchange)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        own = args[place] if place < len(args) else kwargs.get(name)
        cache = passing if own is None else _Before(own, exchange)
        if place < len(args):
            return (*args[:place], cache, *args[place + 1 :]), kwargs
        return args, {**kwargs, name: cache}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def channels(states: Tensor) -> Tensor:
    """Keys or values (batch, heads, tokens, head width) as activations (batch, tokens, heads * head width)."""
    return states.transpose(1, 2).flatten(2)


class _Before:
    """A cache that a model brought, with `exchange` before it."""

    def __init__(self, cache: Any, exchange: Exchange) -> None:
        self._cache, self._exchange = cache, exchange

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._cache.update(*self._exchange(key_states, value_states), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _source(module: nn.Module) -> str:
    """The source of a module's `forward`; empty where there is none to read."""
    try:
        return inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return ""
