"""The reference as Markdown: params.yaml from pydantic, the command line from click, artifacts from their schemas."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import click
import pyarrow as pa
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

TABLES: dict[str, tuple[str, str]] = {
    "raw_corpus": ("plumbline.raw_corpus.shards", "DOCUMENTS"),
    "raw_corpus, rejected.parquet": ("plumbline.raw_corpus.shards", "REJECTED"),
    "raw_corpus, duplicates.parquet": ("plumbline.raw_corpus.ingest", "DUPLICATES"),
    "tokenized_samples": ("plumbline.tokenized_samples.batches", "SAMPLES"),
    "tokenized_samples, duplicates.parquet": ("plumbline.tokenized_samples.tokenize", "DUPLICATES"),
    "tokenized_samples, refused.parquet": ("plumbline.tokenized_samples.tokenize", "REFUSED"),
    "calibration_set, samples.parquet": ("plumbline.calibration_set.reader", "SCHEMA"),
}
"""Table -> module and name of its schema."""
STEPS = (
    "raw_corpus",
    "tokenized_samples",
    "sample_features",
    "calibration_choice",
    "calibration_set",
    "activation_stats",
    "sample_page",
    "quantized_model",
    "evaluation",
    "calibration_report",
    "deployed_model",
    "production_drift",
    "study",
)


def command_line() -> str:
    """Every command with its help, as `--help` prints it."""
    from plumbline.cli.main import main
    from plumbline.cli.sections import OF_STAGES, SECTIONS

    lines = [
        "# Command line",
        "",
        "`plumbline --help` lists the commands, `plumbline COMMAND --help` says this of one.",
    ]
    for title, commands in {**SECTIONS, "Called by dvc.yaml": dict.fromkeys(OF_STAGES, "")}.items():
        lines += ["", f"## {title}"]
        for name in commands:
            context = click.Context(main.commands[name], info_name=f"plumbline {name}", max_content_width=100)
            with context.scope():
                text = main.commands[name].get_help(context)
            lines += ["", f"### {name}", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def params() -> str:
    """Every section of params.yaml with its fields, types, defaults and what they mean."""
    from plumbline.params import Params

    lines = ["# params.yaml", "", "All settings that determine a result. Unknown keys are refused, with the line."]
    seen: list[type[BaseModel]] = []
    waiting = [
        (f"{name}:", model) for name, info in Params.model_fields.items() for model in models_in(info.annotation)
    ]
    grouped: dict[type[BaseModel], list[str]] = {}
    while waiting:
        place, model = waiting.pop(0)
        grouped.setdefault(model, []).append(place)
        if model in seen:
            continue
        seen.append(model)
        waiting += [
            (f"{place} {name}:", inner)
            for name, info in model.model_fields.items()
            for inner in models_in(info.annotation)
            if inner is not model
        ]
    for model in seen:
        lines += ["", f"## `{grouped[model][0]}` {model.__name__}", "", *described(model)]
    return "\n".join(lines) + "\n"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return models_in(typing.get_args(annotation)[0])
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def described(model: type[BaseModel]) -> Iterator[str]:
    """A model's docstring and a table of its fields."""
    yield cell(inspect.getdoc(model) or "")
    yield ""
    yield "| key | value |"
    yield "|---|---|"
    meanings = meanings_of(model)
    for name, info in model.model_fields.items():
        yield f"| `{name}` | {type_of(info.annotation)}; {default_of(info)}. {cell(meanings.get(name, ''))} |"


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the text below it in the source, of the model and its bases."""
    meanings: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not (issubclass(kind, BaseModel) and kind is not BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                meanings[field.target.id] = inspect.cleandoc(str(text.value.value))
    return meanings


def type_of(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_of(argument) for argument in arguments))
    if origin is dict:
        return f"names of {type_of(arguments[1])}"
    if origin in (tuple, list):
        return f"list of {type_of(arguments[0])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(info: FieldInfo) -> str:
    """What a field has where params.yaml leaves it out."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True) if info.default_factory is None else info.default_factory()  # type: ignore[call-arg]
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "by default as below"
    if value is None:
        return "by default null"
    return f"by default `{str(value).lower() if isinstance(value, bool) else value}`"


def cell(text: str) -> str:
    """A text in one line of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def artifacts() -> str:
    """What each artifact is, from its package, and the columns of its tables."""
    lines = [
        "# Artifacts",
        "",
        "Each lies in `data/ASSET`, or `data/ASSET/PARTITION`; DVC keeps every version by hash.",
    ]
    for step in STEPS:
        lines += ["", f"## {step}", "", first_paragraph(f"plumbline.{step}.build", f"plumbline.{step}")]
        for title, (module, name) in TABLES.items():
            if title.split(",")[0] == step:
                lines += ["", f"Columns of {title.partition(', ')[2] or 'its shards'}:", ""]
                lines += ["| column | type |", "|---|---|"]
                schema: pa.Schema = getattr(importlib.import_module(module), name)
                lines += [f"| `{field.name}` | {cell(str(field.type))} |" for field in schema]
    return "\n".join(lines) + "\n"


def first_paragraph(*modules: str) -> str:
    """The beginning of the docstring of the first of these modules that has one."""
    for module in modules:
        try:
            text = inspect.getdoc(importlib.import_module(module))
        except ModuleNotFoundError:
            continue
        if text:
            return cell(text.split("\n\n")[0])
    return ""
