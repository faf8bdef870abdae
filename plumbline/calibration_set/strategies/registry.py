"""Looking a strategy up by its name: the built-in ones, and those that other packages add by an entry point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from plumbline.calibration_set.strategies.base import Selection

GROUP = "plumbline.strategies"

SIMPLE = {
    "random": "plumbline.calibration_set.strategies.uniform",
    "length_stratified": "plumbline.calibration_set.strategies.length_stratified",
    "first_n": "plumbline.calibration_set.strategies.first_n",
    "packed_windows": "plumbline.calibration_set.strategies.packed_windows",
    "embedding_cluster": "plumbline.calibration_set.strategies.embedding_cluster",
    "token_coverage": "plumbline.calibration_set.strategies.token_coverage",
    "activation_coverage": "plumbline.calibration_set.strategies.activation_coverage",
    "hessian_matching": "plumbline.calibration_set.strategies.hessian_matching",
    "hot_flip": "plumbline.calibration_set.strategies.hot_flip",
    "bandit_coverage": "plumbline.calibration_set.strategies.bandit_coverage",
    "reinforce": "plumbline.calibration_set.strategies.reinforce",
    "domain_matched": "plumbline.calibration_set.strategies.domain_matched",
    "self_generated": "plumbline.calibration_set.strategies.self_generated",
}
"""Name -> module with a function `select`, imported on first use: the strategies that call no other strategy."""

_RESERVED = frozenset({"name", "strategy", "n", "seed", "domains", "allow_fewer"})


@dataclass(frozen=True)
class Strategy:
    """A strategy, ready to call: `select(pool, n, rng, **options)`."""

    name: str
    select: Callable[..., Selection]
    options: type[BaseModel]
    """Its options with types and defaults; unknown ones are refused."""
    package: str
    """Distribution that provides it: `plumbline` for the built-in ones."""


def names(built_in: Mapping[str, str] = SIMPLE) -> list[str]:
    """The names of the built-in strategies and of those that packages add, sorted."""
    return sorted({*built_in, *(point.name for point in entry_points(group=GROUP))})


def get(name: str, built_in: Mapping[str, str] = SIMPLE) -> Strategy:
    """The strategy called `name`.

    Args:
        built_in: the strategies of this package that may be named.

    Raises:
        ValueError: no such strategy, two packages claim the name, or the package's strategy does not import or has
            the wrong signature.
    """
    added = list(entry_points(group=GROUP, name=name))
    owners = (["plumbline"] if name in built_in else []) + [_package(point) for point in added]
    if len(owners) > 1:
        raise ValueError(f"strategy {name}: provided by {' and by '.join(owners)}; uninstall or rename one")
    if name in built_in:
        return _strategy(name, import_module(built_in[name]).select, "plumbline")
    if not added:
        close = get_close_matches(name, names(built_in), n=1)
        hint = f" did you mean `{close[0]}`?" if close else ""
        raise ValueError(
            f"no strategy is called `{name}`;{hint} There are {', '.join(names(built_in))}. Another package adds "
            f"one by an entry point in the group {GROUP}"
        )
    try:
        function = added[0].load()
    except Exception as error:  # a foreign module may raise anything; the message must name its package
        raise ValueError(
            f"strategy {name}: `{added[0].value}` of package {owners[0]} does not import "
            f"({type(error).__name__}: {error}); repair or uninstall that package"
        ) from error
    return _strategy(name, function, owners[0])


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _strategy(name: str, select: Callable[..., Selection], package: str) -> Strategy:
    if not callable(select):
        raise ValueError(f"strategy {name} of package {package}: expected a function, found {type(select).__name__}")
    fields: dict[str, Any] = {}
    positional = []
    for parameter in inspect.signature(select, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
            fields[parameter.name] = (annotation, default)
        else:
            positional.append(parameter.name)
    if positional != ["pool", "n", "rng"] or _RESERVED & fields.keys():
        raise ValueError(
            f"strategy {name} of package {package}: expected `select(pool, n, rng, *, options)` with no option called "
            f"{', '.join(sorted(_RESERVED))}; found {inspect.signature(select)}"
        )
    config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    return Strategy(name, select, create_model(f"{name}_options", __config__=config, **fields), package)
