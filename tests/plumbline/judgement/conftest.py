"""A base model, two perturbed copies of it, and texts of two domains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.helpers.tiny_models import random_llama
from tests.helpers.tokenizer import make_tokenizer

SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.3}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, near and far; near and far are the base model with noise on its weights."""
    root = tmp_path_factory.mktemp("models")
    make_tokenizer().save_pretrained(root / "base")
    model = random_llama(tie_word_embeddings=False, **SIZES)
    model.save_pretrained(root / "base")
    for name, noise in (("near", 0.01), ("far", 0.05)):
        shutil.copytree(root / "base", root / name)
        changed = LlamaForCausalLM.from_pretrained(root / "base")
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter += noise * torch.randn_like(parameter)
        changed.save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 texts in two folders, 6 chats, one broken line, one text twice."""
    root = tmp_path_factory.mktemp("texts") / "mine"
    for number in range(12):
        folder = root / ("prose" if number % 2 else "code")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.txt").write_text(f"text {number} " + "and words " * (1 + number % 4), encoding="utf-8")
    (root / "prose/again.md").write_text((root / "prose/01.txt").read_text())
    chats = [
        [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes, " * (number + 1)}]
        for number in range(6)
    ]
    lines = [*(json.dumps({"messages": chat}) for chat in chats), "{broken"]
    (root / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (root / "picture.png").write_bytes(b"png")
    return root
