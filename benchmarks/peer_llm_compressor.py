"""llm-compressor's side of benchmarks/peers.py, run in its own environment; imports nothing of Plumbline.

Runs the script that `plumbline export --to llm-compressor` wrote and prints one line of JSON: seconds, CPU seconds,
memory, versions, and a digest of every sample that reached the model's embedding.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import hashlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.peak_memory import peak_bytes  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder written by `plumbline export`")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--watch", action="store_true", help="record the samples that reach the model")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    script = _load(arguments.folder / "quantize.py")
    from loguru import logger
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    seen = _watched(model) if arguments.watch else {}
    loaded, cpu = time.perf_counter(), time.process_time()
    script.quantize(model, tokenizer, arguments.out)
    done, cpu = time.perf_counter(), time.process_time() - cpu
    print(
        json.dumps(
            {
                "process": done - STARTED,
                "imports": imported - STARTED,
                "load": loaded - imported,
                "work": done - loaded,
                "cpu": cpu,
                "bytes": peak_bytes(),
                "seen": seen,
                "dtype": str(model.dtype),
                "versions": {
                    name: version(name) for name in ("llmcompressor", "compressed-tensors", "torch", "transformers")
                },
            }
        )
    )


def _load(path: Path) -> Any:
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
