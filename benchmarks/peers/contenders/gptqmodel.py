"""GPTQModel: `QuantizeConfig` of the recipe, on a CPU.

What it saves (the GPTQ format) needs GPTQModel to load. So `out` gets the same weights dequantized, after the clock has
stopped, from the folder that it saved.
"""

from benchmarks.peers.contenders.process import Task, contend  # isort: skip

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any


def load(task: Task) -> Any:
    """The model in the dtype it is stored in, with the recipe's settings."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # 7.7.0 asks for half the cores, and fails below two workers
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(task.model).dtype
    return GPTQModel.load(str(task.model), QuantizeConfig(**_settings(task.recipe), device="cpu"), dtype=dtype)


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    from gptqmodel.quantization.config import FOEMConfig, GPTAQConfig

    kinds = {"gptaq": GPTAQConfig, "foem": FOEMConfig}
    return {name: kinds[name](**value) if name in kinds else value for name, value in recipe.items()}


def quantize(model: Any, task: Task) -> dict[str, Any]:
    """Quantize on the samples, in their order, and save the packed model."""
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task.ids()]
    model.quantize(rows, calibration_sort=None, calibration_data_min_length=0, batch_size=1)
    model.save(str(_packed(task)))
    return {"versions": {name: version(name) for name in ("gptqmodel", "torch", "transformers")}}


def dequantize(task: Task) -> None:
    """Write `out`: the base model with the dequantized weights, in its own dtype."""
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = GPTQModel.load(str(_packed(task)), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype="auto")
    layers = {name: layer for name, layer in packed.named_modules() if hasattr(layer, "dequantize_weight")}
    with torch.no_grad():
        for name, layer in layers.items():
            linear = model.get_submodule(name)
            linear.weight.copy_(layer.dequantize_weight().T[:, : linear.in_features].to(linear.weight.dtype))
    if not layers:
        raise RuntimeError("GPTQModel loaded its model without quantized layers")
    model.save_pretrained(task.out)
    AutoTokenizer.from_pretrained(task.model).save_pretrained(task.out)
    shutil.rmtree(_packed(task))


def _packed(task: Task) -> Path:
    return task.out.with_name(f"{task.out.name}-packed")


if __name__ == "__main__":
    contend(load, quantize, dequantize)
