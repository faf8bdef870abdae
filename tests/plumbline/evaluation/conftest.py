"""A base model of two layers, a perturbed copy of it, and a tokenized corpus with two domains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from plumbline.evaluation import base_logits
from tests.helpers.evaluation import describe
from tests.helpers.tiny_models import random_llama
from tests.helpers.tokenized_samples import write_samples

VOCABULARY = 96


@pytest.fixture(autouse=True)
def _no_logits_of_other_tests():
    base_logits._latest = None
    yield
    base_logits._latest = None


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A project whose base model is the folder `base`, in float32, so that batching changes only the last bits."""
    path = tmp_path_factory.mktemp("project")
    model = random_llama(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model.save_pretrained(path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(path / "perturbed")
    describe(path / "perturbed", path / "base")
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """Report: 6 documents of prose, 4 of code, one to three windows of 2 to 40 tokens, plus pool and tuning."""
    rng = np.random.default_rng(0)
    rows = []
    for split in ("pool", "report", "tuning"):
        for domain, documents in (("prose", 6), ("code", 4)):
            for number in range(documents):
                for _ in range(1 + number % 3):
                    ids = rng.integers(0, VOCABULARY, rng.integers(2, 41))
                    doc_id = hashlib.sha256(f"{split}{domain}{number}".encode()).hexdigest()
                    rows.append({"doc_id": doc_id, "split": split, "domain": domain, "input_ids": ids})
    return write_samples(tmp_path_factory.mktemp("tokenized_samples"), rows)
