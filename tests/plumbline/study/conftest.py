"""A tiny model, a tokenized corpus of two domains, and a small study over them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from plumbline.calibration_set.pool import Sources
from tests.helpers.checkpoint import checkpoint
from tests.helpers.study import VOCABULARY, Small
from tests.helpers.tiny_models import random_llama
from tests.helpers.tokenized_samples import write_samples


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("study")
    model = random_llama(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, initializer_range=0.3)
    model.save_pretrained(root / "base")
    rng = np.random.default_rng(0)
    rows = []
    for split, documents in (("pool", 20), ("report", 16), ("tuning", 2)):
        for domain in ("prose", "code"):
            for number in range(documents):
                doc_id = hashlib.sha256(f"{split}{domain}{number}".encode()).hexdigest()
                for _ in range(1 + number % 2):
                    ids = rng.integers(0, VOCABULARY, rng.integers(2, 41))
                    rows.append({"doc_id": doc_id, "split": split, "domain": domain, "input_ids": ids})
    samples = write_samples(root / "tokenized_samples", rows)
    return Small(Sources(samples, None, checkpoint("base", root, device="auto")), root)
