"""llm-compressor: runs the script that `plumbline export --to llm-compressor` wrote, with the recipe beside it.

Prints also the versions, and with --watch a digest of every sample that reached the model's embedding.
"""

from benchmarks.peers.contenders.process import Task, contend  # isort: skip

import hashlib
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def load(task: Task) -> Any:
    """The model in the dtype it is stored in, its tokenizer, and the exported script."""
    script = _script(task.samples / "quantize.py")
    from loguru import logger
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype="auto")
    return model, AutoTokenizer.from_pretrained(task.model), script


def quantize(loaded: Any, task: Task) -> dict[str, Any]:
    """Run the script; a recipe that is not empty replaces the exported one."""
    model, tokenizer, script = loaded
    if task.recipe:
        (task.samples / "recipe.yaml").write_text(json.dumps(task.recipe))  # YAML is a superset of JSON
    seen = _watched(model) if task.watch else {}
    script.quantize(model, tokenizer, task.out)
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    return {"seen": seen, "dtype": str(model.dtype), "versions": {name: version(name) for name in names}}


def _script(path: Path) -> Any:
    """The exported script as a module, so that exactly this script is measured."""
    spec = importlib.util.spec_from_file_location("handed_over", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _watched(model: Any) -> dict[str, list[Any]]:
    """Lists that fill while the model runs.

    `embedding`: SHA-256 of the token ids of every call, in order. `first_linear`: shape of the rows in every call of
    the first Linear, over which a Hessian is summed.
    """
    import torch

    seen: dict[str, list[Any]] = {"embedding": [], "first_linear": []}

    def ids(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = args[0] if args else next(iter(kwargs.values()))
        seen["embedding"] += [hashlib.sha256(row.int().numpy().astype("<i4").tobytes()).hexdigest() for row in rows]

    def shape(module: Any, args: tuple[Any, ...]) -> None:
        seen["first_linear"].append(list(args[0].shape[:-1]))

    model.get_input_embeddings().register_forward_pre_hook(ids, with_kwargs=True)
    first = next(module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    first.register_forward_pre_hook(shape)
    return seen


if __name__ == "__main__":
    contend(load, quantize)
