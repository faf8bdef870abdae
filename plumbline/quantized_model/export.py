"""Writing a quantized model as a Hugging Face folder in the compressed-tensors format."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.artifact import read_json, sha256_file, sha256_files, write_json
from plumbline.base_model.folder import TOKENIZER
from plumbline.quantized_model.full_precision import experts_in_full_precision
from plumbline.quantized_model.grid import Grid, QuantizedWeight
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.params import ActivationParams, SchemeParams

COPIED = (
    *TOKENIZER,
    "added_tokens.json",
    "chat_template.*",
    "generation_config.json",
    "*processor_config.json",
    "*.py",
)
MAX_SHARD_SIZE = "5GB"


def export(
    model: PreTrainedModel, quantized: Quantized, scheme: SchemeParams, base_folder: Path, out: Path
) -> list[str]:
    """Write config.json, the safetensors weights, and what else of the base model is needed to use it.

    Only the state dict is compressed, layer by layer; `model` is neither changed nor run.

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
    static = scheme.activations is not None and not scheme.activations.dynamic
    unscaled = [name for name, layer in quantized.layers.items() if static and layer.input_scale is None]
    if unscaled:
        raise ValueError(f"{unscaled[0]} has no static activation scale, which the scheme needs in every layer")
    weights = {name: layer.weight for name, layer in quantized.layers.items()}
    config = quantization_config(model, weights, scheme.activations)
    state: dict[str, Tensor] = dict(model.state_dict())
    if unknown := sorted(set(quantized.parameters) - set(state)):
        raise ValueError(f"{unknown[0]} is no parameter of {type(model).__name__}, so it cannot be replaced")
    state.update({name: value.detach().clone().contiguous() for name, value in quantized.parameters.items()})
    for name, layer in quantized.layers.items():
        del state[f"{name}.weight"]
        tensors = compress(layer.weight, _scheme(layer.weight, ["Linear"], scheme.activations))
        # clone: q, k and v share one scale, and safetensors store no aliases
        if layer.input_scale is not None:
            tensors["input_scale"] = layer.input_scale.clone()
        if layer.input_zero_point is not None:
            tensors["input_zero_point"] = layer.input_zero_point.clone()
        state.update({f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in tensors.items()})
    original = not experts_in_full_precision(model)  # fused experts load only as they are: see full_precision.py
    model.save_pretrained(out, state_dict=state, max_shard_size=MAX_SHARD_SIZE, save_original_format=original)
    ModelCompressor(config).update_config(str(out))
    if any(needs_dequantize(layer.weight.grid, scheme) for layer in quantized.layers.values()):
        config_json = read_json(out / "config.json")
        config_json["quantization_config"]["dequantize"] = True
        write_json(out / "config.json", config_json)
    for path in sorted({path for pattern in COPIED for path in base_folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, out / path.name)
    return sorted(path.name for path in out.glob("*.safetensors"))


def needs_dequantize(grid: Grid, scheme: SchemeParams) -> bool:
    """Whether config.json needs `dequantize: true`, which makes `from_pretrained` decompress while it loads.

    Zero points of packed weights are packed, too. transformers 5.23 with compressed-tensors 0.20 allocates unpacked
    ones in the model it loads into, and fails on the shapes; decompressing each weight as it is read works. That path
    supports one config group only, and drops activation scales, which packed weights do not have. A model loaded this
    way is saved again in full width. vLLM ignores the key; it reads packed zero points of 4 and 8 bits.
    """
    return not grid.symmetric and not grid.per_tensor and scheme.activations is None


def compress(weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """The tensors that represent a weight on disk, made by compressed-tensors' own compressor.

    The compressor divides by the scale and rounds again. In float32 this reproduces every code exactly; in the model's
    bfloat16 it would not. So it gets float32 and the scale is stored in the model's dtype afterwards.
    """
    rows = weight.codes.shape[0]
    scale, zero, codes = weight.scale.float(), weight.zero_point, weight.codes.float()
    if zero is not None:
        codes = (codes.view(*zero.shape, -1) - zero.unsqueeze(-1)).view(rows, -1)
    dense = (codes.view(*scale.shape, -1) * scale.unsqueeze(-1)).view(rows, -1)
    stored = weight.scale
    if weight.grid.per_tensor:
        scale, stored, zero = scale.view(1), stored.view(1), None if zero is None else zero.view(1)
    tensors = {"weight": dense, "weight_scale": scale} | ({} if zero is None else {"weight_zero_point": zero})
    compressed: dict[str, Tensor] = BaseCompressor.get_value_from_registry(str(scheme.format)).compress(tensors, scheme)
    return {**compressed, "weight_scale": stored}


def quantization_config(
    model: nn.Module, weights: Mapping[str, QuantizedWeight], activations: ActivationParams | None
) -> QuantizationConfig:
    """The `quantization_config` of config.json.

    A single grid targets every Linear. Several grids (widths or group sizes) list their layers, by the last part of the
    names where that is unambiguous. (A group for "Linear" beside named ones would load, but with a warning that the
    names match nothing.)
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    by_grid: dict[Grid, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        by_grid[weight.grid].append(name)
    order = sorted(by_grid, key=lambda grid: (-len(by_grid[grid]), -(grid.group_size or 0), -grid.bits))
    groups = {}
    for index, grid in enumerate(order):
        names = by_grid[grid]
        targets = ["Linear"] if len(order) == 1 else _targets(names, linears)
        groups[f"group_{index}"] = _scheme(weights[names[0]], targets, activations)
    return QuantizationConfig(
        config_groups=groups,
        format=str(groups["group_0"].format),
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[name for name in linears if name not in weights],
    )


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


def _scheme(weight: QuantizedWeight, targets: list[str], activations: ActivationParams | None) -> QuantizationScheme:
    grid = weight.grid
    strategy = QuantizationStrategy.GROUP if grid.group_size else QuantizationStrategy.CHANNEL
    return QuantizationScheme(
        targets=targets,
        weights=QuantizationArgs(
            num_bits=grid.bits,
            symmetric=grid.symmetric,
            strategy=QuantizationStrategy.TENSOR if grid.per_tensor else strategy,
            group_size=grid.group_size,
        ),
        input_activations=None
        if activations is None
        else QuantizationArgs(
            num_bits=activations.bits,
            symmetric=activations.symmetric,
            strategy=QuantizationStrategy.TOKEN if activations.dynamic else QuantizationStrategy.TENSOR,
            dynamic=activations.dynamic,
        ),
        # 8-bit weights alone are packed, too: vLLM reads int-quantized ones only beside quantized activations.
        format="pack-quantized" if activations is None else "int-quantized",
    )


def _targets(names: list[str], linears: list[str]) -> list[str]:
    leaves = Counter(name.rpartition(".")[2] for name in names)
    everywhere = Counter(name.rpartition(".")[2] for name in linears)
    if all(everywhere[leaf] == count for leaf, count in leaves.items()):
        return [rf"re:(.*\.)?{leaf}$" for leaf in sorted(leaves)]
    return names
