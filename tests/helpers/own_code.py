"""A base model whose folder brings its own code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.helpers.tiny_models import random_llama

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_model"
"""
MODELING = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig
from .helper_own import FACTOR


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * FACTOR
        return out
"""
HELPER = "FACTOR = 3.0\n"
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}


def make_own_model(folder: Path) -> Path:
    """Save a Llama whose own class triples its logits."""
    model = random_llama(vocab_size=50, hidden_size=32, intermediate_size=64).to(torch.bfloat16)
    model.save_pretrained(folder)
    for name, code in (("configuration_own", CONFIGURATION), ("modeling_own", MODELING), ("helper_own", HELPER)):
        (folder / f"{name}.py").write_text(code)
    (folder / "tokenization_own.py").write_text("# no module that the model imports\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_model", "architectures": ["OwnModel"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
