"""Chooses the class of transformers that a model's folder calls for: a language model, or one that also sees or hears.

Loading whole, loading layer by layer and building the modules without weights all choose here, so that the names of
modules and weights agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from plumbline.artifact import read_json
from plumbline.base_model.as_quantized import with_sequential_experts

AUTO_CLASSES: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Raises:
        ValueError: transformers does not know the model, a value is of another type or impossible, or the model's code
            would have to run and is not trusted.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # it computes with the values before it checks them
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder.name}: config.json names code of its own (auto_map), which runs only where `model: "
                "{trust_remote_code: true}` in params.yaml says so. Read the folder's *.py first"
            ) from error
        raise ValueError(f"{folder.name}: transformers cannot read config.json: {_in_words(error)}") from error


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Around a model's constructor, which meets values of config.json that nothing has checked.

    Raises:
        ValueError: the constructor failed at one of them.
    """
    try:
        yield
    except (LookupError, ArithmeticError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{folder.name}: no model can be built from config.json: {_in_words(error)}; restore the config.json that "
            "belongs to the weights"
        ) from error


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, ImportError)) else f"{type(error).__name__}: {text}"


def auto_class(folder: Path, config: PreTrainedConfig, trust_remote_code: bool = False) -> Any:
    """The auto class of transformers that builds the model, with every part that its checkpoint holds.

    It is the one that gives the class named under `architectures` in config.json. Where none does, it is one for all
    the model's inputs before one for text alone.

    Raises:
        ValueError: transformers has no generating model of this kind, or its code is in another repository.
    """
    own = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (chosen := [auto for auto in AUTO_CLASSES if auto.__name__ in own]):
        _require_own_code(folder, own)
        return chosen[0]
    fitting = {auto: _class_names(auto, config) for auto in AUTO_CLASSES if type(config) in auto._model_mapping}
    named = config.architectures or []
    for auto, names in fitting.items():
        if names & set(named):
            return auto
    if not fitting:
        raise ValueError(
            f"{folder.name}: config.json describes {', '.join(named) or config.model_type}, from which transformers "
            "builds no model that continues a text; give model.name in params.yaml a causal language model, or a "
            "multimodal one with a language model in it"
        )
    return next(reversed(fitting))


def stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that config.json names for the weights; bfloat16 where it names none.

    Raises:
        ValueError: no dtype of torch has that name.
    """
    text = config.get("text_config") or {}
    keys = ("dtype", "torch_dtype")
    name = next((part[key] for part in (config, text) for key in keys if part.get(key)), "bfloat16")
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"config.json: dtype is {name!r}, expected a name such as bfloat16 or float32")
    return dtype


def skeleton(folder: Path, trust_remote_code: bool = False, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model's modules on the meta device, from its configuration alone. Raises as `read_config`, `auto_class`.

    Args:
        dtype: of the weights; None: the `stored_dtype`.
    """
    config = read_config(folder, trust_remote_code)
    auto = auto_class(folder, config, trust_remote_code)
    if dtype is None:
        dtype = stored_dtype(read_json(folder / "config.json"))
    with torch.device("meta"):
        with building(folder):
            model: PreTrainedModel = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        return with_sequential_experts(model)


def _class_names(auto: Any, config: PreTrainedConfig) -> set[str]:
    classes = auto._model_mapping[type(config)]
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


def _require_own_code(folder: Path, auto_map: dict[str, Any]) -> None:
    """Refuse code that is not in the folder: neither its digest nor a commit would pin it."""
    for key, value in auto_map.items():
        for reference in value if isinstance(value, (list, tuple)) else (value,):
            if reference and "--" in reference:
                raise ValueError(
                    f"{folder.name}: auto_map in config.json names {reference!r} for {key}, code of another "
                    "repository, which nothing pins; copy its *.py into the folder and name them without the repository"
                )
