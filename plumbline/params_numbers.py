"""Numbers of params.yaml that no field's own rule refuses: `true`, which counts as 1, a text such as '5', sizes that no
machine has. The rules stand here, since another rule at a field would make its stage out of date."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

LARGEST = 2**63 - 1
SIZES = 65_536
BOUNDS: Mapping[tuple[str, ...], tuple[int, int]] = {
    ("tokenize", "workers"): (0, 4096),
    ("features", "batch_size"): (1, SIZES),
    ("features", "signatures", "cells"): (1, SIZES),
    ("features", "signatures", "sketch"): (1, SIZES),
    ("features", "signatures", "pooled"): (1, SIZES),
    ("statistics", "top_k"): (1, SIZES),
    ("statistics", "shards"): (1, SIZES),
    ("execution", "hidden_gib"): (0, 2**20),
    ("report", "resamples"): (1, 10_000_000),
    ("studies", "*", "resamples"): (1, 10_000_000),
    ("studies", "*", "draws"): (1, SIZES),
    ("studies", "*", "random_sets"): (0, SIZES),
}
"""Place, `*` for any name -> the smallest and the largest number that is not a slip of the finger."""


def mistakes_in_numbers(model: type[BaseModel], content: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys from the top, sentence) of each such number.

    Args:
        model: the class that the content is for.
        content: as it was read from YAML.
    """
    return _below([model], content, ())


def _below(annotations: Sequence[Any], value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    kinds = [kind for annotation in annotations for kind in _kinds(annotation)]
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _below([part for kind in kinds for part in _entry(kind, str(key))], item, (*keys, str(key)))
    elif isinstance(value, list):
        items = [part for kind in kinds if typing.get_origin(kind) in (list, tuple) for part in typing.get_args(kind)]
        for number, item in enumerate(value):
            yield from _below(items, item, (*keys, str(number)))
    elif isinstance(value, bool):
        if {int, float} & {*map(_plain, kinds)} and bool not in kinds:
            yield keys, f"found {str(value).lower()}, expected a number"
    elif isinstance(value, str):
        if {int, float} & {*map(_plain, kinds)} and str not in kinds and _is_number(value):
            yield keys, f"found the text {value!r}, expected a number; leave the quotes out"
    elif isinstance(value, (int, float)) and {int, float} & {*map(_plain, kinds)}:
        smallest, largest = _bounds(keys, -LARGEST if int in kinds and float not in kinds else None)
        if (smallest is not None and value < smallest) or (largest is not None and value > largest):
            yield keys, f"found {value}, expected {smallest} to {largest}"


def _bounds(keys: tuple[str, ...], default: int | None) -> tuple[int | None, int | None]:
    for place, bounds in BOUNDS.items():
        if len(place) == len(keys) and all(part in ("*", key) for part, key in zip(place, keys, strict=True)):
            return bounds
    return default, None if default is None else LARGEST


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False  # refused by the field's own rule
    return True


def _plain(kind: Any) -> Any:
    return kind if isinstance(kind, type) else None


def _kinds(annotation: Any) -> Iterator[Any]:
    """The parts of a union, without what is annotated; of a literal, the types of its values."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _kinds(part)
    elif origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is typing.Literal:
        yield from (type(value) for value in typing.get_args(annotation))
    else:
        yield annotation


def _entry(kind: Any, key: str) -> list[Any]:
    """The annotation of a key: a field of a model, or a value of a dictionary."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind.model_fields[key].annotation] if key in kind.model_fields else []
    return [typing.get_args(kind)[1]] if typing.get_origin(kind) is dict else []
