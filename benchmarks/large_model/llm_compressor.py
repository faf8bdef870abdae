"""Quantizes a folder of `benchmarks.large_model` with llm-compressor's GPTQ W4A16; runs in that tool's environment.

    PYTHONPATH=. …/venv-llm_compressor/bin/python -m benchmarks.large_model.llm_compressor FOLDER

Prints seconds and peak resident memory: of the whole, and after loading.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from loguru import logger
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, default_data_collator

from benchmarks.peak_memory import peak_bytes

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def main(folder: Path) -> None:
    """Load the model, quantize it layer by layer as llm-compressor does by default, and save it."""
    started = time.perf_counter()
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    loaded = peak_bytes()
    ids = pq.read_table(folder / "set" / "samples.parquet", columns=["input_ids"])["input_ids"].to_pylist()
    rows = [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids]
    data = DataLoader(Dataset.from_list(rows), batch_size=1, shuffle=False, collate_fn=default_data_collator)
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}, ignore=["lm_head", "re:.*mlp.gate$"]
    )
    unread = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    oneshot(model=model, tokenizer=unread, recipe=recipe, dataset=data)  # it asks for a tokenizer, and does not use it
    model.save_pretrained(folder / "llm-compressor", save_compressed=True)
    seconds = time.perf_counter() - started
    print(
        f"llm-compressor: {seconds:.0f} s, peak {peak_bytes() / 2**30:.2f} GiB, {loaded / 2**30:.2f} GiB after loading"
    )


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    main(Path(sys.argv[1]))
