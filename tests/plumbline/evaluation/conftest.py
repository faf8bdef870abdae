"""A base model of two layers, a perturbed copy of it, and a tokenized corpus with two domains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.artifact import sha256_files, write_json, write_table
from plumbline.base_model.load import base_model_digest
from plumbline.evaluation import base_logits
from plumbline.tokenized_samples.batches import SAMPLES

FINGERPRINT = "f" * 64
VOCABULARY = 96


@pytest.fixture(autouse=True)
def _no_logits_of_other_tests(monkeypatch):
    monkeypatch.setattr(base_logits, "_latest", None)


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A project whose base model is the folder `base`, in float32, so that batching changes only the last bits."""
    path = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(path / "perturbed")
    describe(path / "perturbed", path / "base")
    return path


def describe(folder: Path, base: Path, fingerprint: str = FINGERPRINT) -> None:
    """Write the part of calibration.json that an evaluation reads."""
    weights = sha256_files(folder, [path.name for path in folder.glob("*.safetensors")])
    record = {
        "fingerprint": fingerprint,
        "model": weights,
        "base_model": {"digest": base_model_digest(base)},
        "calibration_set": {"digest": "c" * 64},
        "scheme": {"name": "w4a16-rtn", "method": "rtn", "weight_bits": 4},
        "layers": {
            "a": {"bits": 4, "group_size": 32, "relative_error": 0.25},
            "b": {"bits": 8, "group_size": None, "relative_error": 0.5},
            "no statistics": {"bits": 8, "group_size": None},
        },
        "fallbacks": {"b": "no tokens"},
    }
    write_json(folder / "calibration.json", record)


def write_samples(path: Path, rows: list[dict]) -> Path:
    """A tokenized_samples folder with one shard; `rows` give doc_id, split, domain, input_ids."""
    lines = []
    for index, row in enumerate(rows):
        ids = np.asarray(row["input_ids"], dtype="<i4")
        sample_id = hashlib.sha256(ids.tobytes()).hexdigest()
        given = {name: row[name] for name in ("doc_id", "split", "domain")}
        counts = {"window": index, "start": 0, "n_tokens": len(ids), "n_special": 0}
        lines.append({"sample_id": sample_id, **given, "source": "test", **counts, "input_ids": ids.tolist()})
    table = pa.Table.from_pylist(lines, SAMPLES)
    write_table(path / "shards" / "a.parquet", table)
    empty = pa.table({"shard": pa.array([], pa.string()), "sample_id": pa.array([], pa.string())})
    write_table(path / "duplicates.parquet", empty.append_column("row", pa.array([], pa.int64())))
    entry = {"shard": "a", "samples": len(rows)}
    write_json(path / "accounting.json", {"fingerprint": FINGERPRINT, "shards": [entry]})
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
