"""Quantizes tiny models with llm-compressor's default GPTQ W4A16, in its own environment; prints a line of JSON each.

    python llm_compressor.py FOLDER '["llama", ...]' '["gemma3", ...]'

FOLDER holds the models and samples.json; the second list names those that read images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from loguru import logger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, default_data_collator

GROUP_SIZE = 32
"""W4A16 with groups that divide the widths of the tiny models."""


def examine(name: str, folder: Path, auto: Any, ids: list[list[int]]) -> dict[str, str]:
    """What became of one model; a reason instead of "yes" where a step failed."""
    facts = {"name": name, "runs": "yes", "reloads": "–", "logits": "–"}
    out = folder / f"{name}-quantized"
    try:
        model = auto.from_pretrained(folder / name, dtype="auto")
        rows = [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids]
        data = DataLoader(Dataset.from_list(rows), batch_size=1, shuffle=False, collate_fn=default_data_collator)
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP_SIZE}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        recipe = GPTQModifier(config_groups=groups, ignore=["lm_head"])
        oneshot(model=model, tokenizer=AutoTokenizer.from_pretrained(folder / name), recipe=recipe, dataset=data)
        memory = logits(model, ids[0])
        model.save_pretrained(out, save_compressed=True)
    except Exception as error:
        return {**facts, "runs": reason(error)}
    try:
        restored, info = auto.from_pretrained(out, output_loading_info=True)
        absent, unread = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        loaded = logits(restored, ids[0])
        facts["reloads"] = "yes"
        if absent:
            facts["reloads"] = f"{len(absent)} weights are random: {absent[0]}"
        elif unread:
            facts["reloads"] = f"{len(unread)} weights are not read: {unread[0]}"
        apart = float((memory - loaded).abs().max())
        facts["logits"] = "equal" if torch.equal(memory, loaded) else f"differ by {apart:.2g}"
    except Exception as error:
        facts["reloads"] = reason(error)
    return facts


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """The logits of a sample."""
    return model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits.float()


def reason(error: Exception) -> str:
    """An error in one line that fits into a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".replace("|", "/")


if __name__ == "__main__":
    logger.remove()
    torch.set_num_threads(1)
    root, images = Path(sys.argv[1]), json.loads(sys.argv[3])
    texts = json.loads((root / "samples.json").read_text())
    for model_name in json.loads(sys.argv[2]):
        chosen = AutoModelForImageTextToText if model_name in images else AutoModelForCausalLM
        print(json.dumps(examine(model_name, root, chosen, texts)), flush=True)
