"""Whether a checkpoint holds exactly what its model calls for: no weight lacks, none is left over, all are finite."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from plumbline.base_model.as_quantized import holds_sequential_experts
from plumbline.base_model.dequantize import dense_weights
from plumbline.base_model.folder import quantization_of
from plumbline.base_model.language import text_config
from plumbline.base_model.weight_files import unread_files, weight_entries, weight_files

LAYER = re.compile(r"\blayers\.(\d+)\.")
CONVERSION = (
    "the weights do not combine to those of the model (one of several experts is missing, or has another shape; or "
    "memory ran out)"
)


def require_complete(
    folder: Path,
    model: PreTrainedModel,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Iterable[tuple[Any, ...]],
) -> None:
    """Refuse a checkpoint that is not the model's: transformers would fill gaps with random numbers and drop the rest.

    Args:
        unexpected: names that transformers has no place for, without those that its class of model ignores.
        mismatched: (name, shape in the checkpoint, shape in the model).

    Raises:
        ValueError: a weight is missing, has another shape, or has no place in the model.
    """
    if found := sorted((name, tuple(stored), tuple(called_for)) for name, stored, called_for in mismatched):
        name, stored, called_for = found[0]
        raise ValueError(
            f"{folder.name}: {name} is {stored} in the safetensors, config.json calls for {called_for}: they belong to "
            "different models; fetch both again from one revision"
        )
    if missing:
        raise ValueError(
            f"{folder.name}: the safetensors lack {len(missing)} weights that config.json calls for, first "
            f"{min(missing)!r}; the download is incomplete, or config.json belongs to another model"
        )
    if rest := sorted(name for name in unexpected if not _further_layer(model, name)):
        raise ValueError(
            f"{folder.name}: the safetensors hold {len(rest)} weights that config.json does not call for, first "
            f"{rest[0]!r}{_layers_beyond(model, rest)}; the model would run without them. Restore the config.json that "
            "belongs to the weights, or remove them from the safetensors"
        )


def require_floating(folder: Path, model: PreTrainedModel) -> None:
    """Refuse weights that are stored as integers, which transformers converts as they are: without their scales.

    Raises:
        ValueError: config.json says nothing of quantization, and a weight is one of a quantized checkpoint.
    """
    if quantization_of(folder) is not None:
        return
    entries = weight_entries(folder, weight_files(folder))
    integers = sorted(key for key, entry in entries.items() if re.fullmatch(r"[IU]\d+|BOOL", entry["dtype"]))
    parameters = dict(model.named_parameters())
    for key, name in names_in_model(model, integers).items() if integers else ():
        if name in parameters and parameters[name].is_floating_point():
            raise ValueError(
                f"{folder.name}: {key} is stored as {entries[key]['dtype']}, expected floating-point numbers: it is "
                "that of a quantized checkpoint whose config.json lacks `quantization_config`; fetch the model in full "
                "precision"
            )


def require_finite(folder: Path, model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are inf or NaN.

    Args:
        model: the one that holds them.
        weights: (name in the model, weight); weights on the meta device pass.

    Raises:
        ValueError: names the first tensor of the checkpoint, its file and position.
    """
    for name, weight in weights:
        if _is_finite(weight):
            continue
        files = weight_files(folder)
        names, module = names_in_model(model, files), name.rpartition(".")[0]
        # The tensor itself first, then others of its module: what is wrong may be the scale of a quantized weight.
        for key in sorted(files, key=lambda key: (names[key] != name, key)):
            if names[key] != name and key.rpartition(".")[0] != module:
                continue
            with safe_open(folder / files[key], framework="pt") as handle:
                values = handle.get_tensor(key).float()
            if not bool(values.isfinite().all()):
                position = tuple((~values.isfinite()).nonzero()[0].tolist())
                raise ValueError(
                    f"{folder.name}/{files[key]}: {key} holds {float(values[position])} at {position}, so the model "
                    "computes nothing of use; fetch the file again, or repair the weight"
                )
        raise ValueError(f"{folder.name}: {name} holds inf or NaN in the loaded model; fetch its weights again")


def unloaded_tensors(folder: Path, model: PreTrainedModel) -> dict[str, str]:
    """What of the checkpoint in `folder` is not in the model: name of a tensor, or of a file -> reason.

    Raises:
        ValueError: as `weight_files`.
    """
    state = model.state_dict()
    dense = dense_weights(folder, weight_files(folder))
    names = names_in_model(model, dense.shapes)
    sequential = tuple(f"{name}." for name, module in model.named_modules() if holds_sequential_experts(module))
    lacking = {key: name for key, name in names.items() if name not in state and not name.startswith(sequential)}
    reasons = {key: _reason(model, name) for key, name in lacking.items()} | dense.dropped
    beside = "transformers does not read this file: the others hold the model"
    return dict(sorted(reasons.items())) | dict.fromkeys(unread_files(folder), beside)


def names_in_model(model: PreTrainedModel, keys: Iterable[str], converters: list[Any] | None = None) -> dict[str, str]:
    """Name in the checkpoint -> name in the model by transformers' rules; the first, where one weight becomes several.

    A weight that the model has no place for keeps a name that is not in the model.

    Args:
        converters: transformers' renamings and conversions; None: those of the model's class.
    """
    rules = get_model_conversion_mapping(model) if converters is None else converters
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    merges = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    names = {}
    for key in keys:
        name = str(rename_source_key(key, renamings, merges, prefix, state)[0])
        if name not in state and key in state:
            name = str(rename_source_key(key, [], [], prefix, state)[0])
        names[key] = name
    return names


def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.is_meta or weight.numel() == 0:
        return True
    values = weight.float() if weight.element_size() == 1 else weight
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())  # NaN is carried through


def _reason(model: PreTrainedModel, name: str) -> str:
    kind = type(model).__name__
    for pattern in sorted(model._keys_to_ignore_on_load_unexpected or ()):
        if re.search(pattern, name):
            return f"{kind} of transformers leaves it out (pattern {pattern})"
    if _further_layer(model, name):
        return f"a layer for predicting further tokens, which {kind} of transformers does not build"
    return f"{kind} of transformers computes it itself"


def _further_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is that of a layer after the last, of those that predict more than the next token."""
    config, match = text_config(model), LAYER.search(name)
    layers, further = _layers(model), getattr(config, "num_nextn_predict_layers", None) or 0
    return match is not None and layers <= int(match[1]) < layers + further


def _layers_beyond(model: PreTrainedModel, names: Collection[str]) -> str:
    """What the numbers of the layers tell, if some are beyond the model's last; else nothing."""
    numbers = [int(match[1]) for name in names if (match := LAYER.search(name))]
    layers = _layers(model)
    return (
        f" (config.json: {layers} layers, the weights: {max(numbers) + 1})" if max(numbers, default=0) >= layers else ""
    )


def _layers(model: PreTrainedModel) -> int:
    return int(getattr(text_config(model), "num_hidden_layers", 0) or 0)
