"""Loads the checkpoint of any quantizer that transformers reads, and says of the others what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.base_model.folder import quantization_of
from plumbline.base_model.params import Device

GGUF = ".gguf"
IN_FULL = "not quantized"


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A checkpoint by where it is."""

    path: Path
    """A folder of Hugging Face, or a GGUF file."""
    name: str
    """How the table calls it."""
    method: str
    """`quant_method` of its config.json, "gguf", or `IN_FULL`."""

    def bytes(self) -> int:
        """Size of its weights."""
        files = [self.path] if self.path.is_file() else list(self.path.glob("*.safetensors"))
        return sum(file.stat().st_size for file in files)


def checkpoints(paths: list[Path]) -> list[JudgedCheckpoint]:
    """The checkpoints at these paths, checked as far as their files tell, each with a name of its own.

    Raises:
        FileNotFoundError: a path does not exist, or has no model.
        ValueError: transformers cannot read it, or a package for it is missing; names the package.
    """
    found = [_checkpoint(path) for path in paths]
    names = [one.name for one in found]
    return [
        one
        if names.count(one.name) == 1
        else JudgedCheckpoint(one.path, f"{one.path.parent.name}/{one.name}", one.method)
        for one in found
    ]


def _checkpoint(path: Path) -> JudgedCheckpoint:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a checkpoint, or a {GGUF} file")
    name = path.resolve().name
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob(f"*{GGUF}"))
        if len(files) > 1:
            raise ValueError(f"{path} holds {len(files)} {GGUF} files; name the one that is meant")
        if not files:
            raise FileNotFoundError(f"{path}: no config.json and no {GGUF} file; expected a folder of Hugging Face")
        path = files[0]
    if path.is_file():
        if path.suffix != GGUF:
            raise ValueError(f"{path}: expected a folder of Hugging Face or a {GGUF} file")
        _require("GGUF", {"gguf": "gguf", "accelerate": "accelerate"}, path)
        return JudgedCheckpoint(path, name.removesuffix(GGUF), "gguf")
    quantization = quantization_of(path)
    method = IN_FULL if quantization is None else str(quantization.get("quant_method") or "unnamed")
    if quantization is not None:
        _require_reader(path, method)
    return JudgedCheckpoint(path, name, method)


def _require_reader(path: Path, method: str) -> None:
    """Refuse a quantization that transformers would ignore: it would read the codes as if they were weights."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.split("_4bit")[0].split("_8bit")[0] for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        fix = "export it as compressed-tensors, or judge it in the engine that serves it"
        if method == "modelopt":
            fix = "Model-Optimizer's unified checkpoints are read by vLLM, SGLang and TensorRT-LLM alone; " + fix
        raise ValueError(f"{path.name}: transformers has no reader for quant_method {method!r}; {fix}")
    needs = {
        "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
        "awq": {"gptqmodel": "gptqmodel", "accelerate": "accelerate"},
        "auto-round": {"auto_round": "auto-round"},
        "bitsandbytes": {"bitsandbytes": "bitsandbytes", "accelerate": "accelerate"},
        "hqq": {"hqq": "hqq"},
        "torchao": {"torchao": "torchao"},
        "fp8": {"accelerate": "accelerate"},
        "mxfp4": {"accelerate": "accelerate"},
    }
    _require(method, needs.get(method, {}), path)


def _require(what: str, packages: dict[str, str], path: Path) -> None:
    from importlib.util import find_spec

    if missing := [name for module, name in packages.items() if find_spec(module) is None]:
        raise ValueError(
            f"{path.name}: transformers reads {what} with the package{'s' if len(missing) > 1 else ''} "
            f"{' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed; "
            f"`pip install {' '.join(missing)}`"
        )


def load(checkpoint: JudgedCheckpoint, device: Device = "auto", trust_remote_code: bool = False) -> Any:
    """The model as transformers loads it, in evaluation mode. GGUF weights are dequantized.

    Raises:
        ValueError: it does not load here; the message says why, with the package that is missing.
    """
    from plumbline.base_model.load import load_model

    try:
        if checkpoint.path.is_file():
            return _load_gguf(checkpoint.path, device)
        return load_model(checkpoint.path, device, trust_remote_code)
    except (ImportError, RuntimeError, NotImplementedError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:400]
        raise ValueError(f"{checkpoint.name} ({checkpoint.method}) does not load here: {reason}") from error


def _load_gguf(path: Path, device: Device) -> Any:
    from transformers import AutoModelForCausalLM

    from plumbline.base_model.device import torch_device

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    model.requires_grad_(False)
    return model.eval().to(torch_device(device))
