"""Writing a quantized model as a Hugging Face folder in the compressed-tensors format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.artifact import read_json, sha256_file, sha256_files, write_json
from plumbline.base_model.folder import TOKENIZER
from plumbline.base_model.matrices import Matrix, matrix_of
from plumbline.base_model.parts import ROUTER, kind_of
from plumbline.file_mode import follow_umask
from plumbline.quantized_model.checkpoint_names import as_in_checkpoint, names_in_checkpoint
from plumbline.quantized_model.expert_layout import pieces_of_experts
from plumbline.quantized_model.grid import QuantizedWeight, multiplier, per_row, running_weight
from plumbline.quantized_model.kv_cache import cache_tensors
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import ConfigTarget, quantization_config, scheme_of_group
from plumbline.quantized_model.scheme import scheme_of

COPIED = (
    *TOKENIZER,
    "added_tokens.json",
    "chat_template.*",
    "generation_config.json",
    "*processor_config.json",
    "*.py",
)
MAX_SHARD_SIZE = "5GB"
INPUT_TENSORS = ("input_scale", "input_zero_point", "input_global_scale")
"""What a checkpoint stores about the input of a Linear: fields of `Layer`, and names of tensors."""


def export(
    model: PreTrainedModel, quantized: Quantized, scheme: SchemeParams, base_folder: Path, out: Path
) -> list[str]:
    """Write config.json, the safetensors weights, and what else of the base model is needed to use it.

    Only the state dict is compressed, layer by layer; `model` is neither changed nor run. Tensors have the names of the
    base model's checkpoint, where every expert is a tensor of its own.

    Args:
        model: the base model.
        quantized: from `quantize_model` of that model; parameters that it does not name are stored as they are.
        scheme: of `quantized`; read for the activations.
        base_folder: folder of the base model; its tokenizer, processor, generation settings and code are copied byte by
            byte.
        out: an existing folder.

    Returns:
        Names of the weight files, sorted.

    Raises:
        ValueError: a static activation scale is missing, or the model has no parameter of that name.
    """
    found = {name: matrix_of(model, name) for name in quantized.layers}
    state = kept_tensors(model, found, quantized.parameters)
    names, targets = StoredNames(model, found), []
    for target, tensors in tensors_of_layers(names, quantized.layers, scheme):
        state.update(tensors)
        targets.append(target)
    state.update(cache_tensors(model, quantized.cache))
    model.save_pretrained(out, state_dict=state, max_shard_size=MAX_SHARD_SIZE, save_original_format=False)
    follow_umask(out.glob("*.safetensors"))
    describe(names, targets, scheme, quantized.dense, base_folder, out)
    return sorted(path.name for path in out.glob("*.safetensors"))


def kept_tensors(
    model: PreTrainedModel,
    quantized: Mapping[str, Matrix],
    parameters: Mapping[str, Tensor],
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    """The tensors that are stored as they are, by their names in the checkpoint and in its order.

    Args:
        quantized: the matrices that are not.
        parameters: changed ones by name.
        wanted: selects tensors by name in the model.

    Raises:
        ValueError: the model has no parameter of a name in `parameters`.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    if unknown := sorted(set(parameters) - set(state)):
        raise ValueError(f"{unknown[0]} is no parameter of {type(model).__name__}, so it cannot be replaced")
    state.update({name: value.detach().clone().contiguous() for name, value in parameters.items()})
    for key in {f"{matrix.owner}.{matrix.part}" for matrix in quantized.values()}:
        del state[key]
    return as_in_checkpoint(model, {name: tensor for name, tensor in state.items() if wanted(name)})


class StoredNames:
    """The names that a checkpoint gives to quantized matrices. Weights may be on the meta device."""

    def __init__(self, model: PreTrainedModel, matrices: Mapping[str, Matrix]) -> None:
        """
        Args:
            matrices: all that are quantized, in the model's order.
        """
        self.model, self.matrices = model, matrices
        self.linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        self.stored = names_in_checkpoint(model, self.linears)
        """Module name of a Linear -> its name in the checkpoint."""

    @property
    def ignored(self) -> list[str]:
        """What `ignore` of the quantization_config names."""
        ignore = [name for name in self.linears if name not in self.matrices]
        modules = (name for name, _ in self.model.named_modules())
        ignore += [name for name in modules if kind_of(name) == ROUTER and name not in self.linears]
        return ignore + [self.stored[name] for name in ignore if self.stored.get(name, name) != name]


def tensors_of_layers(
    names: StoredNames, layers: Mapping[str, Layer], scheme: SchemeParams
) -> Iterator[tuple[ConfigTarget, dict[str, Tensor]]]:
    """Every quantized matrix as engines see it, with its tensors by their names in the checkpoint.

    Linears come first, then the experts, module by module.

    Args:
        layers: some or all of `names.matrices`, but all experts of a module or none.

    Raises:
        ValueError: a static activation scale is missing.
    """
    matrices = {name: names.matrices[name] for name in layers}
    _require_scales(layers, matrices, scheme)
    for name, layer in layers.items():
        if matrices[name].expert is None:
            activations = scheme_of(name, matrices[name], scheme).activations
            tensors = compress(layer.weight, scheme_of_group(layer.weight.grid, ["Linear"], activations))
            inputs = ((key, getattr(layer, key)) for key in INPUT_TENSORS)
            # clone: q, k and v share one scale, and safetensors store no aliases
            tensors |= {key: tensor.clone() for key, tensor in inputs if tensor is not None}
            yield ConfigTarget(name, layer.weight.grid, activations), _named(names.stored[name], tensors)
    for owner in dict.fromkeys(matrix.owner for matrix in matrices.values() if matrix.expert is not None):
        for piece in pieces_of_experts(names.model, owner):
            weight = layers[piece.matrix].weight.take(piece.rows)
            tensors = compress(weight, scheme_of_group(weight.grid, ["Linear"], None))
            yield ConfigTarget(piece.name, weight.grid, None, expert=True), _named(piece.name, tensors)


def _named(stored: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stored}.{key}": tensor.cpu().contiguous() for key, tensor in tensors.items()}


def describe(
    names: StoredNames, targets: Sequence[ConfigTarget], scheme: SchemeParams, dense: bool, base_folder: Path, out: Path
) -> None:
    """Write the quantization into config.json, and copy what else of the base model is needed.

    Args:
        targets: every quantized matrix.
        dense: as in `Quantized`.
        out: a folder with the config.json of the base model.
    """
    config = quantization_config(targets, names.linears, names.ignored, scheme.kv_cache)
    ModelCompressor(config).update_config(str(out))
    if dense:
        config_json = read_json(out / "config.json")
        config_json["quantization_config"]["dequantize"] = True
        write_json(out / "config.json", config_json)
    for path in sorted({path for pattern in COPIED for path in base_folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, out / path.name)


def _require_scales(layers: Mapping[str, Layer], found: Mapping[str, Matrix], scheme: SchemeParams) -> None:
    for name, layer in layers.items():
        activations = scheme_of(name, found[name], scheme).activations
        missing = layer.input_scale is None and layer.input_global_scale is None
        if activations is not None and activations.static and missing:
            raise ValueError(f"{name} has no static activation scale, which the scheme needs in every layer")


def compress(weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """The tensors that represent a weight on disk, made by compressed-tensors' own compressor.

    The compressor divides by the scale and rounds again. In float32 this reproduces every code exactly; in the model's
    bfloat16 it would not. So it gets float32 and the scale is stored in the model's dtype afterwards.
    """
    grid, scale, zero = weight.grid, weight.scale.float(), weight.zero_point
    s = per_row(multiplier(scale, weight.global_scale), grid, len(weight.codes))
    zeros = None if zero is None else per_row(zero, grid, len(weight.codes))
    dense = running_weight(weight.codes, s, zeros, grid, torch.float32)
    stored = weight.scale
    if grid.per_tensor:
        scale, stored, zero = scale.view(1), stored.view(1), None if zero is None else zero.view(1)
    tensors = {"weight": dense, "weight_scale": scale} | ({} if zero is None else {"weight_zero_point": zero})
    if weight.global_scale is not None:
        tensors["weight_global_scale"] = weight.global_scale.clone()
    compressed: dict[str, Tensor] = BaseCompressor.get_value_from_registry(str(scheme.format)).compress(tensors, scheme)
    return compressed if grid.scale_format != "model" else {**compressed, "weight_scale": stored.clone()}


def add_provenance(out: Path, weight_files: Iterable[str], record: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write calibration.json beside the weights and its summary into config.json.

    config.json holds the summary twice: in `quantization_config`, where quantization tools look, and at the
    top level as `calibration`, because `model.save_pretrained` of transformers 5.23 rebuilds `quantization_config` from
    the keys it knows and drops all others.

    Args:
        out: the exported folder.
        weight_files: names in it; their SHA-256 goes into calibration.json, with that of the model's own code.
        record: the content of calibration.json, without the weights' digests.
        summary: the entry in config.json; the SHA-256 of calibration.json is added to it.
    """
    code = [path.name for path in out.glob("*.py")]  # decides what the model computes, as its weights do
    write_json(out / "calibration.json", {**record, "model": sha256_files(out, sorted([*weight_files, *code]))})
    entry = {**summary, "record": {"file": "calibration.json", "sha256": sha256_file(out / "calibration.json")}}
    config = read_json(out / "config.json")
    config["calibration"] = config["quantization_config"]["calibration"] = entry
    write_json(out / "config.json", config)
