"""Loads the model and tokenizer of a folder with transformers."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from plumbline.base_model.architecture import auto_class, building, read_config
from plumbline.base_model.as_quantized import with_sequential_experts
from plumbline.base_model.bfloat16 import with_wide_products
from plumbline.base_model.checkpoint_check import CONVERSION, require_complete, require_finite, require_floating
from plumbline.base_model.device import torch_device
from plumbline.base_model.expert_scales import expert_global_scales
from plumbline.base_model.folder import base_model_digest, require_weights
from plumbline.base_model.params import Device
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.threads import settle_threads
from plumbline.base_model.weight_files import weight_files

# Experts in one tensor are no module: transformers decompresses them itself, and compressed-tensors finds no match.
logging.getLogger("compressed_tensors.utils.match").addFilter(lambda record: "experts" not in record.getMessage())


def load_model(
    folder: Path,
    device: Device = "auto",
    trust_remote_code: bool = False,
    dequantize: bool = False,
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """The model in evaluation mode, without gradients.

    Args:
        dequantize: load a quantized checkpoint as a model in full precision. Without it, a quantized one (an exported
            model) is loaded as such.
        dtype: of weights and activations; "auto": the one it is stored in. With `dequantize` it is always that.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: no safetensors (pickled weights run code when they are opened); a file is damaged; a weight is
            missing, left over, of another shape, inf or NaN; or "cuda" was requested and there is no GPU.
    """
    if dequantize:
        return with_wide_products(StreamedModel(folder, device, trust_remote_code, dequantize).whole())
    require_weights(folder)
    weight_files(folder)  # refuses damaged files
    settle_threads()
    target = torch_device(device)
    auto = auto_class(folder, read_config(folder, trust_remote_code), trust_remote_code)
    try:
        with expert_global_scales(), building(folder):
            model, info = auto.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the name of the weight
            )
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise ValueError(f"{folder.name}: {CONVERSION}; transformers' report above names the weights") from error
    require_complete(folder, model, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    require_floating(folder, model)
    weights = {weight.data_ptr(): (name, weight) for name, weight in model.state_dict().items()}  # tied ones once
    require_finite(folder, model, weights.values())
    model = with_sequential_experts(model)
    model.requires_grad_(False)
    return with_wide_products(model.eval().to(target))


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        FileNotFoundError: the folder has no tokenizer.
        ValueError: its files are damaged, or name what transformers does not know.
    """
    if not any(True for pattern in ("tokenizer*", "*.model", "vocab.*") for _ in folder.glob(pattern)):
        raise FileNotFoundError(
            f"{folder.name}: no tokenizer (tokenizer.json, tokenizer.model or vocab.*); copy the model's own there"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # of any kind: several parsers read the files
        if "trust_remote_code" in str(error):
            raise
        raise ValueError(
            f"{folder.name}: transformers cannot load the tokenizer ({type(error).__name__}: {error}); fetch "
            "tokenizer.json, tokenizer_config.json and config.json again"
        ) from error


def loaded_model(
    folder: Path, device: Device = "auto", trust_remote_code: bool = False, dequantize: bool = False
) -> PreTrainedModel:
    """The model as `load_model` returns it, cached so that the partitions of one run share it.

    The cache holds one model: another folder, changed weights or another device replace it. All callers share the
    model: leave weights, mode and hooks as they were.
    """
    return _loaded(folder.resolve(), base_model_digest(folder), torch_device(device), trust_remote_code, dequantize)


@lru_cache(maxsize=1)
def _loaded(folder: Path, digest: str, device: Device, trust_remote_code: bool, dequantize: bool) -> PreTrainedModel:
    return load_model(folder, device, trust_remote_code, dequantize)
