"""Errors of pydantic about a section of params.yaml, as lines that say place, what was found and what is expected."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from plumbline.yaml_file import SUGGEST_QUOTES, YamlFile

LONGEST = 80


class Mistakes(ValueError):
    """Several mistakes, each with its keys from the top of the file and a sentence."""

    def __init__(self, mistakes: Sequence[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(keys)}: {sentence}" for keys, sentence in mistakes))
        self.mistakes = tuple(mistakes)


def explained(error: ValidationError, file: YamlFile, model: type[BaseModel]) -> str:
    """A line per mistake: `line 12, tokenize.max_length: Input should be ..., found 'long'`.

    Args:
        model: the class that refused the content of the file.
    """
    lines = []
    for problem in error.errors():
        cause = (problem.get("ctx") or {}).get("error")
        if isinstance(cause, Mistakes):
            lines += [line_of(file, keys, sentence) for keys, sentence in cause.mistakes]
        else:
            keys = tuple(str(part) for part in problem["loc"])
            lines.append(line_of(file, keys, _sentence(problem, model)))
    return "\n".join(lines)


def line_of(file: YamlFile, keys: Sequence[str], sentence: str) -> str:
    """A mistake as a line of the message: its line in the file, its keys, and what is wrong."""
    number = file.line(keys)
    place = f"line {number}, " if number else ""
    return f"  {place}{'.'.join(keys) or 'top level'}: {sentence}"


def _sentence(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    keys, kind, value = [str(part) for part in problem["loc"]], str(problem["type"]), problem["input"]
    if kind == "extra_forbidden":
        return _unknown_key(keys[-1], sorted(_fields(model, keys[:-1])))
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return "Field required; add it"
    if kind == "string_type" and not isinstance(value, (Mapping, list)):
        return f"expected text, found {_shown(value)}; {SUGGEST_QUOTES}"
    return f"{problem['msg']}, found {_shown(value)}"


def _unknown_key(key: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}" if known else "remove it"
    return f"unknown key; {hint}"


def _shown(value: Any) -> str:
    """A value for a message; a large one by its kind, because it may be the whole file."""
    if value is None:
        return "nothing (null)"
    text = repr(value)
    if isinstance(value, (Mapping, list)) and len(text) > LONGEST:
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)} entries"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _fields(model: Any, keys: Sequence[str]) -> set[str]:
    """Fields of the models that an annotation allows at these keys below `model`."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        if not keys:
            return set(model.model_fields)
        field = model.model_fields.get(keys[0])
        return _fields(field.annotation, keys[1:]) if field else set()
    arguments = typing.get_args(model)
    origin = typing.get_origin(model)
    if origin is dict:
        return _fields(arguments[1], keys[1:]) if keys else set()
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        found = [
            _fields(argument, keys) | _fields(argument, keys[1:]) if keys else _fields(argument, keys)
            for argument in arguments
        ]
        return set().union(*found)
    return set()
