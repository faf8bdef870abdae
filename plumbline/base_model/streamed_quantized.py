"""A quantized checkpoint as transformers loads it, with its weights left on disk until they are needed.

transformers' own quantizer prepares the modules and its loader reads the tensors; compressed-tensors decompresses them,
as it does at the first forward pass of a model that is loaded whole. So a layer computes the same bits either way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import decompress_module
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import meta_device_safe_creation_ops
from transformers.modeling_utils import LoadStateDictConfig, _get_dtype, local_torch_dtype
from transformers.quantizers.auto import AutoHfQuantizer

from plumbline.base_model.architecture import auto_class, read_config
from plumbline.base_model.checkpoint_check import CONVERSION, names_in_model
from plumbline.base_model.device import torch_device
from plumbline.base_model.expert_groups import load_in_groups, put_weight, room_for
from plumbline.base_model.expert_scales import expert_global_scales
from plumbline.base_model.params import Device
from plumbline.base_model.quiet import quiet
from plumbline.base_model.stored_experts import stored_experts
from plumbline.base_model.streamed import compute_buffers, unread, weights_of
from plumbline.base_model.tensor_reader import UnreadTensor
from plumbline.base_model.weight_files import header, weight_files


class StreamedQuantized:
    """A quantized model in evaluation mode without its weights, in the modules that transformers gives it."""

    def __init__(self, folder: Path, device: Device = "auto", trust_remote_code: bool = False) -> None:
        """Build the modules; no weight is read.

        Args:
            folder: in the compressed-tensors format.
            device: where weights are loaded to.

        Raises:
            FileNotFoundError: no config.json.
            ValueError: a file is damaged, or a tensor has no place in the model.
        """
        self.folder, self.device = folder, torch.device(torch_device(device))
        self.files = weight_files(folder)
        config = read_config(folder, trust_remote_code)
        auto = auto_class(folder, config, trust_remote_code)
        self.quantizer = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
        self.quantizer.validate_environment()
        config, self.dtype = _get_dtype("auto", [str(folder / min(self.files.values()))], config, None, None, True)
        with torch.device("meta"), meta_device_safe_creation_ops(), quiet():
            model = auto.from_config(config, dtype=self.dtype, trust_remote_code=trust_remote_code)
            with local_torch_dtype(self.dtype, type(model).__name__):  # experts that are built here take it
                self.quantizer.preprocess_model(model=model, dtype=self.dtype)
        self.model: PreTrainedModel = model.requires_grad_(False).eval()
        compute_buffers(model, self.device)
        self.names = names_in_model(model, self.files, self._conversions())
        """Name in the checkpoint -> name in the model (the first, where one weight becomes several)."""
        state = model.state_dict()
        if unknown := sorted(key for key, name in self.names.items() if name not in state):
            raise ValueError(f"the quantized model loads with unexpected keys: {', '.join(unknown[:3])}")
        headers = [header(folder / file) for file in sorted(set(self.files.values()))]
        shapes = {key: entry["shape"] for entries in headers for key, entry in entries.items()}
        self.stored_experts = stored_experts(model, self.names, shapes)
        """By name, the modules of fused experts of which `experts` loads some."""
        self.quantizer.compressor.remove_decompression_hook(model)  # `present` decompresses what it loads
        self.quantizer.postprocess_model(model)

    @contextmanager
    def present(self, wanted: Callable[[str], bool]) -> Iterator[None]:
        """Within the context, load and decompress the weights that `wanted` selects by name in the model.

        Raises:
            ValueError: a weight is missing, or has another shape than the model gives it.
        """
        modules = [module for name, module in self.model.named_modules() if _has(module, name, wanted)]
        before = [(module, _tensors(module)) for module in modules]
        try:
            self._fill(wanted)
            for module in modules:
                decompress_module(module, self.quantizer.compressor.force_compression_format)
            yield
        finally:
            for module, (parameters, buffers, status) in before:
                module._parameters, module._buffers = parameters, buffers
                module.__dict__.update(status)

    @contextmanager
    def experts(self, module: str, parameters: Sequence[str], experts: range) -> Iterator[None]:
        """Within the context, these parameters of a module of `stored_experts` hold these experts alone, decompressed.

        Args:
            parameters: their names in the module.
        """
        with room_for(self.model.get_submodule(module), parameters, experts):
            keys = self.stored_experts[module].unread(parameters, experts, self._unread)
            self._load(keys, self.device)
            yield

    def _unread(self, keys: Iterable[str]) -> dict[str, UnreadTensor]:
        return unread(self.folder, {key: self.files[key] for key in keys})

    def _fill(self, wanted: Callable[[str], bool]) -> None:
        tied = {a: b for pair in self.model.all_tied_weights_keys.items() for a, b in (pair, pair[::-1])}
        stored = set(self.names.values())
        keys = [
            key
            for key, name in self.names.items()
            if wanted(name) or (name in tied and wanted(tied[name]) and tied[name] not in stored)
        ]
        weights = self._unread(keys)
        load_in_groups(self.model, self.names, weights, partial(self._load, device=self.device))
        self.model.requires_grad_(False)
        for name, other in tied.items():
            if wanted(name) and self.model.get_parameter(name).is_meta:
                put_weight(self.model, name, self.model.get_parameter(other))
        lacking = [name for name, tensor in weights_of(self.model) if wanted(name) and tensor.is_meta]
        if lacking:
            raise ValueError(f"the quantized model loads with missing keys: {', '.join(sorted(lacking)[:3])}")

    def _load(self, weights: Mapping[str, Any], device: torch.device) -> None:
        config = LoadStateDictConfig(
            pretrained_model_name_or_path=str(self.folder),
            device_map={"": device},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            hf_quantizer=self.quantizer,
            weight_mapping=self._conversions(),
        )
        with quiet(), expert_global_scales():
            info, _ = convert_and_load_state_dict_in_model(self.model, weights, config)
        if info.conversion_errors:
            raise ValueError(f"{self.folder.name}: {min(info.conversion_errors)}: {CONVERSION}")
        if info.mismatched_keys:
            raise ValueError(f"the quantized model loads with mismatched keys: {min(map(str, info.mismatched_keys))}")

    def _conversions(self) -> list[Any]:
        with expert_global_scales():
            return list(get_model_conversion_mapping(self.model, None, self.quantizer))


def _has(module: nn.Module, name: str, wanted: Callable[[str], bool]) -> bool:
    own = (*module._parameters, *(key for key in module._buffers if key not in module._non_persistent_buffers_set))
    return any(wanted(f"{name}.{part}" if name else part) for part in own)


def _tensors(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What loading and decompressing changes of a module."""
    status = {key: module.__dict__[key] for key in ("quantization_status",) if key in module.__dict__}
    return copy.copy(module._parameters), copy.copy(module._buffers), status
