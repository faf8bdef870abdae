"""A model whose weights stay on disk until they are needed, for models that do not fit into memory.

The model is built on the meta device, and transformers' own loader reads every weight. So names, dtypes and conversions
(of a checkpoint's separate experts, for example) are the same as in `load_model`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import meta_device_safe_creation_ops
from transformers.modeling_utils import LoadStateDictConfig, _get_dtype
from transformers.utils import logging as transformers_logging

from plumbline.base_model.architecture import auto_class, building, read_config
from plumbline.base_model.as_quantized import put_module, replaced_experts, set_experts, with_sequential_experts
from plumbline.base_model.checkpoint_check import (
    CONVERSION,
    names_in_model,
    require_complete,
    require_finite,
    require_floating,
)
from plumbline.base_model.dequantize import dense_weights, quantizer_of
from plumbline.base_model.device import torch_device
from plumbline.base_model.expert_groups import load_in_groups, put_weight, room_for
from plumbline.base_model.folder import require_full_precision, require_weights
from plumbline.base_model.params import Device
from plumbline.base_model.stored_experts import stored_experts
from plumbline.base_model.tensor_reader import TensorReader, UnreadTensor
from plumbline.base_model.weight_files import weight_files


class StreamedModel:
    """A model in evaluation mode without its weights; buffers that no checkpoint holds (rotary angles) are present."""

    def __init__(
        self, folder: Path, device: Device = "auto", trust_remote_code: bool = False, dequantize: bool = False
    ) -> None:
        """Read names and shapes of the weights, but no weight.

        Args:
            device: where weights are loaded to.
            dequantize: whether the checkpoint is quantized, and its dequantized weights are the model's.

        Raises:
            FileNotFoundError: no config.json.
            ValueError: no safetensors; a file is damaged; a weight is missing, left over or of another shape; a
                quantized checkpoint; or "cuda" without a GPU.
        """
        require_weights(folder)
        require_full_precision(folder, dequantize)
        self.folder, self.device = folder, torch.device(torch_device(device))
        self.files = weight_files(folder)
        """Name of a weight in the checkpoint -> its file."""
        self.shapes = dense_weights(folder, self.files).shapes
        """Shape of a weight by its name in the checkpoint, as it would be in full precision."""
        self.quantizer = quantizer_of(folder)
        self.model = self._built(trust_remote_code)
        rules = get_model_conversion_mapping(self.model, None, self.quantizer)
        self.names = names_in_model(self.model, self.files, rules)
        """Name in the checkpoint -> name in the model (the first, where one weight becomes several)."""
        self.fused: dict[str, nn.Module] = {}
        """Experts in one tensor, by module name, which the model holds one by one (as_quantized.py): the checkpoint is
        loaded into these."""
        self._initialize()
        self.fused = replaced_experts(self.model)
        with_sequential_experts(self.model)
        self.stored_experts = {} if self.quantizer else stored_experts(self.model, self.names, self.shapes)
        """By name, the modules of fused experts of which `experts` loads some."""

    @contextmanager
    def present(self, wanted: Callable[[str], bool]) -> Iterator[None]:
        """Within the context, load the weights that `wanted` selects by name in the model; remove them afterwards.

        Raises:
            ValueError: a weight is inf or NaN.
        """
        before = dict(weights_of(self.model))
        try:
            self._fill(wanted, before)
            yield
        finally:
            for name, tensor in weights_of(self.model):
                if tensor is not before[name]:
                    put_weight(self.model, name, before[name])

    @contextmanager
    def experts(self, module: str, parameters: Sequence[str], experts: range) -> Iterator[None]:
        """Within the context, these parameters of a module of `stored_experts` hold these experts alone.

        Args:
            parameters: their names in the module.

        Raises:
            ValueError: a weight is inf or NaN.
        """
        owner = self.model.get_submodule(module)
        with room_for(owner, parameters, experts):
            self._load(self.stored_experts[module].unread(parameters, experts, self._unread), self.device)
            loaded = [(f"{module}.{name}", owner.get_parameter(name)) for name in parameters]
            require_finite(self.folder, self.model, loaded)
            yield

    def whole(self) -> PreTrainedModel:
        """The model with all its weights, which stay. It is saved as a model that was never quantized.

        Raises:
            ValueError: a weight is inf or NaN.
        """
        self._fill(lambda name: True, dict(weights_of(self.model)))
        rules = get_model_conversion_mapping(self.model)
        names_in_model(self.model, self.shapes, rules)
        self.model._weight_conversions = [rule for rule in rules if rule.was_used()]
        return self.model

    def _fill(self, wanted: Callable[[str], bool], before: dict[str, Tensor]) -> None:
        """Load the weights that `wanted` selects, in the dtype of those in `before`."""
        tied, stored = self._tied(), set(self.names.values())
        keys = [
            key
            for key, name in self.names.items()
            if wanted(name) or (name in tied and wanted(tied[name]) and tied[name] not in stored)
        ]
        weights = self._unread(keys)
        load = partial(self._load, device=self.device, quantizer=self.quantizer)
        if self.quantizer is None:
            load_in_groups(self.model, self.names, weights, load)
        else:
            load(weights)
        fresh = [(name, tensor) for name, tensor in weights_of(self.model) if tensor is not before[name]]
        for name, tensor in fresh:
            if tensor.dtype != before[name].dtype:  # a quantizer passes what is not quantized on as it is
                put_weight(self.model, name, tensor.to(before[name].dtype))
        require_finite(self.folder, self.model, fresh)
        for name, other in tied.items():
            if wanted(name) and self.model.get_parameter(name).is_meta:
                put_weight(self.model, name, self.model.get_parameter(other))

    def _unread(self, keys: Iterable[str]) -> dict[str, UnreadTensor]:
        return unread(self.folder, {key: self.files[key] for key in keys})

    def _tied(self) -> dict[str, str]:
        """Weight -> the weight it is tied to, in both directions."""
        return {a: b for pair in self.model.all_tied_weights_keys.items() for a, b in (pair, pair[::-1])}

    def _built(self, trust_remote_code: bool) -> PreTrainedModel:
        config = read_config(self.folder, trust_remote_code)
        auto = auto_class(self.folder, config, trust_remote_code)
        for part in (config, config.get_text_config()):
            if hasattr(part, "quantization_config"):
                del part.quantization_config
        # Without a dtype in config.json, transformers takes that of the first weight, which may be a quantized one.
        named = "auto" if self.quantizer is None or config.dtype is not None else "bfloat16"
        first = str(self.folder / min(self.files.values()))
        config, dtype = _get_dtype(named, [first], config, None, None, True)
        with torch.device("meta"), meta_device_safe_creation_ops(), building(self.folder):
            model = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        self.dtype = dtype
        if model.can_generate():
            model.generation_config = generation_config(self.folder)
        return model.requires_grad_(False).eval()

    def _initialize(self) -> None:
        """Refuse an incomplete checkpoint, and compute the buffers that it does not hold."""
        weights = {key: torch.empty(shape, dtype=self.dtype, device="meta") for key, shape in self.shapes.items()}
        info = self._load(weights, torch.device("meta"))
        tied, missing = self._tied(), set(info.missing_keys)
        info.missing_keys = {name for name in missing if tied.get(name, name) in missing}
        self.model._adjust_missing_and_unexpected_keys(info)
        require_complete(self.folder, self.model, info.missing_keys, info.unexpected_keys, info.mismatched_keys)
        require_floating(self.folder, self.model)
        compute_buffers(self.model, self.device)
        for name, other in self.model.all_tied_weights_keys.items():  # loading replaced one of the two
            put_weight(self.model, name, self.model.get_parameter(other))
        self.conversions = self.model._weight_conversions

    def _load(self, weights: Mapping[str, Any], device: torch.device, quantizer: Any = None) -> Any:
        """Load weights by their names in the checkpoint into the model; returns transformers' loading report."""
        own = {name: self.model.get_submodule(name) for name in self.fused}
        for name, module in self.fused.items():
            put_module(self.model, name, module)
        try:
            info = self._load_as_stored(weights, device, quantizer)
        finally:
            for name, module in own.items():
                put_module(self.model, name, module)
        for name, module in self.fused.items():
            if not next(module.parameters()).is_meta:
                set_experts(name, module, own[name])
                for key, weight in module.named_parameters():
                    put_weight(module, key, weight.to("meta"))
        self.model.requires_grad_(False)
        if hasattr(self, "conversions"):  # those of a part are not all
            self.model._weight_conversions = self.conversions
        return info

    def _load_as_stored(self, weights: Mapping[str, Any], device: torch.device, quantizer: Any) -> Any:
        config = LoadStateDictConfig(
            pretrained_model_name_or_path=str(self.folder),
            device_map={"": device},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            hf_quantizer=quantizer,
            weight_mapping=get_model_conversion_mapping(self.model, None, quantizer),
        )
        with _without_bar():
            info, _ = convert_and_load_state_dict_in_model(self.model, weights, config)
        if info.conversion_errors:
            raise ValueError(f"{self.folder.name}: {min(info.conversion_errors)}: {CONVERSION}")
        return info


def generation_config(folder: Path) -> GenerationConfig:
    """The settings of text generation that `from_pretrained` gives a model, from its file or from config.json."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # there is no such file
        known = {"config_file_name": "config.json", "_from_model_config": True}
        return GenerationConfig.from_pretrained(folder, local_files_only=True, **known)


def unread(folder: Path, files: Mapping[str, str]) -> dict[str, UnreadTensor]:
    """Unread tensors of a checkpoint.

    Args:
        files: name of a tensor -> its file.
    """
    readers = {file: TensorReader(folder / file) for file in sorted(set(files.values()))}
    return {key: readers[file].unread(key) for key, file in files.items()}


def weights_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name; a shared tensor appears under each of its names."""
    apart = {name for name, _ in model.named_non_persistent_buffers()}  # type: ignore[operator]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, tensor) for name, tensor in tensors if name not in apart]


def compute_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary angles, on the device."""
    for _, tensor in weights_of(model):  # else transformers fills it with random numbers
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)
    model.initialize_weights()
    for name, buffer in list(model.named_non_persistent_buffers()):
        put_weight(model, name, buffer.to(device))


@contextmanager
def _without_bar() -> Iterator[None]:
    """Within the context, turn off transformers' progress bar and loading reports."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
