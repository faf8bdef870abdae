"""Checkpoints as others publish them quantized, made from a model in full precision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def set_quantization(folder: Path, settings: dict[str, Any] | None, part: str | None = None) -> None:
    """Write `quantization_config` into config.json, or into a part of it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part])["quantization_config"] = settings
    path.write_text(json.dumps(config))


def to_fp8(folder: Path, block: int | None = 128) -> dict[str, Tensor]:
    """Store every Linear of a decoder layer in FP8, as DeepSeek does; returns the dequantized weights, in bfloat16."""
    stored = load_file(folder / "model.safetensors")
    expected = {}
    for name, weight in list(stored.items()):
        if ".layers." not in name or weight.dim() != 2:
            continue
        height, width = (block, block) if block else weight.shape
        scales = torch.empty(math.ceil(weight.shape[0] / height), math.ceil(weight.shape[1] / width))
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        dense = torch.empty(weight.shape)
        for i, j in torch.cartesian_prod(*map(torch.arange, scales.shape)).tolist():
            rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            tile = weight[rows, columns].float()
            scales[i, j] = tile.abs().max() / 448
            codes[rows, columns] = (tile / scales[i, j]).to(torch.float8_e4m3fn)
            dense[rows, columns] = codes[rows, columns].float() * scales[i, j]
        expected[name] = dense.to(torch.bfloat16)
        stored |= {name: codes, f"{name}_scale_inv": scales if block else scales.reshape(())}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    size = [block, block] if block else None
    set_quantization(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": size})
    return expected


def to_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Store the experts in MXFP4, as gpt-oss does; returns the dequantized weights, in bfloat16."""
    stored = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, width, rows = stored.pop(name).shape  # stored (experts, rows, groups, bytes)
        blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()  # the low half comes first
        values = torch.tensor(E2M1)[nibbles] * torch.exp2(scales.float() - 127).unsqueeze(-1)
        expected[name] = values.flatten(-2).transpose(1, 2).to(torch.bfloat16)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    set_quantization(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return expected
