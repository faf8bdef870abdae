"""A Hugging Face folder in the compressed-tensors format, which transformers and vLLM load."""

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

from assets.artifact import read_json, sha256_file, sha256_files, write_json
from assets.base_model.load import TOKENIZER
from assets.quantized_model.grid import QuantizedWeight

COPIED = (*TOKENIZER, "added_tokens.json", "chat_template.json", "generation_config.json")
MAX_SHARD_SIZE = "5GB"


def export(
    model: PreTrainedModel,
    weights: Mapping[str, QuantizedWeight],
    input_scales: Mapping[str, Tensor],
    base_folder: Path,
    out: Path,
) -> list[str]:
    """Write config.json, the safetensors weights, and the tokenizer and generation settings of the base model.

    Only the state dict is compressed, layer by layer; `model` itself is not touched and not run.

    Args:
        model: the base model.
        weights: by module name of a Linear; every other parameter is stored as it is.
        input_scales: static activation scale, shape (1,), by module name; empty: activations are not quantized.
        base_folder: where the base model's files lie; tokenizer and generation settings are copied byte by byte.
        out: an existing folder.

    Returns:
        Names of the weight files, sorted.

    Raises:
        ValueError: `input_scales` names other layers than `weights`.
    """
    if input_scales and set(input_scales) != set(weights):
        raise ValueError("a static activation scale for some layers only; give all quantized layers one, or none")
    config = quantization_config(model, weights, static_activations=bool(input_scales))
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, weight in weights.items():
        del state[f"{name}.weight"]
        tensors = compress(weight, _scheme(weight, ["Linear"], static_activations=bool(input_scales)))
        if input_scales:
            tensors["input_scale"] = input_scales[name].clone()  # q, k and v share one; safetensors store no aliases
        state.update({f"{name}.{key}": tensor.cpu().contiguous() for key, tensor in tensors.items()})
    model.save_pretrained(out, state_dict=state, max_shard_size=MAX_SHARD_SIZE)
    ModelCompressor(config).update_config(str(out))
    for path in sorted({path for pattern in COPIED for path in base_folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, out / path.name)
    return sorted(path.name for path in out.glob("*.safetensors"))


def compress(weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """The tensors that stand for a weight on disk, by compressed-tensors' own compressor.

    That compressor divides by the scale and rounds once more. In float32 this gives back every code exactly; in the
    model's bfloat16 it would not, so the scale is put back into the model's dtype afterwards.
    """
    rows = weight.codes.shape[0]
    scale = weight.scale.float()
    dense = (weight.codes.view(rows, scale.shape[1], -1) * scale.unsqueeze(-1)).view(rows, -1)
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    tensors: dict[str, Tensor] = compressor.compress({"weight": dense, "weight_scale": scale}, scheme)
    return {**tensors, "weight_scale": weight.scale}


def quantization_config(
    model: nn.Module, weights: Mapping[str, QuantizedWeight], static_activations: bool
) -> QuantizationConfig:
    """The `quantization_config` of config.json.

    One group size: it targets every Linear. Several: each names its layers, by the last part of their names where that
    suffices. (A group for "Linear" beside named ones would load, but with a warning that the names match nothing.)
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    by_size: dict[int | None, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        by_size[weight.group_size].append(name)
    order = sorted(by_size, key=lambda size: (-len(by_size[size]), -(size or 0)))
    groups = {}
    for index, size in enumerate(order):
        names = by_size[size]
        targets = ["Linear"] if len(order) == 1 else _targets(names, linears)
        groups[f"group_{index}"] = _scheme(weights[names[0]], targets, static_activations)
    return QuantizationConfig(
        config_groups=groups,
        format=str(groups["group_0"].format),
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[name for name in linears if name not in weights],
    )


def add_provenance(out: Path, weight_files: Iterable[str], record: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write calibration.json beside the weights and its summary into config.json.

    The summary stands there twice, word for word: in `quantization_config`, where quantization tools look, and at the
    top level as `calibration`, because `model.save_pretrained` of transformers 5.23 rebuilds `quantization_config` from
    the keys it knows and drops all others.

    Args:
        out: the exported folder.
        weight_files: names in it; their SHA-256 goes into calibration.json.
        record: the content of calibration.json, without the weights' digests.
        summary: the entry in config.json; the SHA-256 of calibration.json is added to it.
    """
    write_json(out / "calibration.json", {**record, "model": sha256_files(out, weight_files)})
    entry = {**summary, "record": {"file": "calibration.json", "sha256": sha256_file(out / "calibration.json")}}
    config = read_json(out / "config.json")
    config["calibration"] = config["quantization_config"]["calibration"] = entry
    write_json(out / "config.json", config)


def _scheme(weight: QuantizedWeight, targets: list[str], static_activations: bool) -> QuantizationScheme:
    grouped = weight.group_size is not None
    return QuantizationScheme(
        targets=targets,
        weights=QuantizationArgs(
            num_bits=weight.bits,
            symmetric=True,
            strategy=QuantizationStrategy.GROUP if grouped else QuantizationStrategy.CHANNEL,
            group_size=weight.group_size,
        ),
        input_activations=QuantizationArgs(num_bits=8, symmetric=True, strategy=QuantizationStrategy.TENSOR)
        if static_activations
        else None,
        format="int-quantized" if static_activations else "pack-quantized",
    )


def _targets(names: list[str], linears: list[str]) -> list[str]:
    leaves = Counter(name.rpartition(".")[2] for name in names)
    everywhere = Counter(name.rpartition(".")[2] for name in linears)
    if all(everywhere[leaf] == count for leaf, count in leaves.items()):
        return [rf"re:(.*\.)?{leaf}$" for leaf in sorted(leaves)]
    return names
