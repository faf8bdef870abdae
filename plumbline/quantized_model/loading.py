"""Whether transformers loads a quantized model of some architecture as it is stored, found out on the meta device.

compressed-tensors takes the weight of a packed Linear away until the first forward pass. The code of some models reads
it before (Falcon's and Mamba 2's, when transformers initializes what a checkpoint lacks), and loading fails. Such a
folder needs `dequantize: true`, with which each weight is decompressed as it is read. That path knows one width of the
Linears and rounds no activations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from compressed_tensors.quantization import QuantizationConfig
from torch import nn
from transformers import CompressedTensorsConfig, PreTrainedModel
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from plumbline.base_model.quiet import quiet
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantization_config import ConfigTarget, quantization_config
from plumbline.quantized_model.scheme import grid_of_scheme

IN_BFLOAT16 = ("nvfp4", "mxfp4", "mxfp8")
"""Types of weights that compressed-tensors 0.20 decompresses to bfloat16, whatever the model's dtype."""
_REHEARSED: WeakKeyDictionary[PreTrainedModel, dict[Any, str | None]] = WeakKeyDictionary()
"""The results of `rehearsed` for the models in memory, by what the scheme says."""


def loads_dense(model: PreTrainedModel, scheme: SchemeParams, formats: Sequence[SchemeParams]) -> bool:
    """Whether the folder of this model needs `dequantize: true`.

    Zero points of packed weights are packed, too. transformers 5.23 with compressed-tensors 0.20 allocates unpacked
    ones in the model it loads into, and fails on the shapes; decompressing each weight as it is read works. A model
    loaded this way is saved again in full width. vLLM ignores the key; it reads packed zero points of 4 and 8 bits.

    Args:
        formats: the scheme of every kind of matrices that the model has and the scheme quantizes.

    Raises:
        ValueError: the model needs it, and the scheme cannot have it: it has several widths, or rounds activations.
    """
    if not scheme.symmetric and not scheme.per_tensor and scheme.activations is None:
        return True
    narrow = model.dtype != torch.bfloat16 and any(own.weight_type in IN_BFLOAT16 for own in formats)
    problem = None if narrow else rehearsed(model, formats)
    if not narrow and problem is None:
        return False
    reason = f"{type(model).__name__} does not load quantized as it is stored (its code says {problem}), "
    fix = "remove"
    if narrow:
        dtype = str(model.dtype).removeprefix("torch.")
        types = sorted({own.weight_type for own in formats} & set(IN_BFLOAT16))
        reason = f"transformers decompresses {' and '.join(types)} weights to bfloat16, and this model is {dtype}, "
        fix = "store the base model in bfloat16, or remove"
    if any(own.activations is not None for own in formats):
        raise ValueError(f"{reason}and decompressed while loading its inputs are not rounded; {fix} activations")
    if scheme.mixed is not None:
        raise ValueError(f"{reason}and decompressed while loading it has one width; write weight_bits instead of mixed")
    if len(formats) > 1:
        raise ValueError(f"{reason}and decompressed while loading it has one format; {fix} overrides")
    return True


def rehearsed(model: PreTrainedModel, formats: Sequence[SchemeParams]) -> str | None:
    """The error of loading a model of this class under these formats; None if there is none.

    The steps are those of `from_pretrained` around the weights, on a model without weights.
    """
    known = _REHEARSED.setdefault(model, {})
    problems = []
    for own in formats:
        size = own.group_size if own.weight_type != "int" else None
        target = ConfigTarget("", grid_of_scheme(own, None, size), own.activations)
        if target not in known:
            known[target] = _rehearse(model, target)
        problems.append(known[target])
    return next((problem for problem in problems if problem is not None), None)


def _rehearse(model: PreTrainedModel, target: ConfigTarget) -> str | None:
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = quantization_config([target], linears, ["lm_head"])
    with torch.device("meta"), quiet():
        empty: Any = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
        quantizer = CompressedTensorsHfQuantizer(CompressedTensorsConfig(**_plain(config)), pre_quantized=True)
        quantizer.validate_environment()
        quantizer.preprocess_model(model=empty)
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor._is_hf_initialized = True
        try:
            empty.initialize_weights()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def _plain(config: QuantizationConfig) -> dict[str, Any]:
    entries: dict[str, Any] = config.model_dump(mode="json")
    return {key: value for key, value in entries.items() if value is not None}
