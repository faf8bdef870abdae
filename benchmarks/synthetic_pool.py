"""A random pool of any size, written to disk as by the pipeline, to measure how strategies scale.

Lengths are lognormal, token ids follow Zipf's law, embeddings are a normalized mixture of Gaussians.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from plumbline.artifact import write_json, write_table
from plumbline.sample_features.signatures import Signatures, SignatureSite
from plumbline.tokenized_samples.batches import SAMPLES

SHARD = 65_536
TUNING = 2048
"""Samples of the tuning split, in addition to the pool."""
DIMENSION = 384
TOPICS = 300
VOCABULARY = 50_000
DOMAINS = ("prose", "code", "chat")
FINGERPRINT = "f" * 64


def write_pool(folder: Path, n: int) -> None:
    """Write `tokenized_samples` and `sample_features` of n samples in the pool and TUNING more in the tuning split."""
    rng_of_pool = np.random.default_rng(0)
    topics = rng_of_pool.standard_normal((TOPICS, DIMENSION)).astype(np.float32)
    weights = rng_of_pool.dirichlet(np.full(TOPICS, 0.5))
    zipf = np.cumsum(1 / np.arange(1, VOCABULARY))
    shards = []
    for number, start in enumerate(range(0, n + TUNING, SHARD)):
        rows = np.arange(start, min(start + SHARD, n + TUNING))
        rng = np.random.default_rng([1, number])
        name = f"{number:016x}"
        table = _samples(rows, rng, zipf / zipf[-1])
        write_table(folder / "tokenized_samples" / "shards" / f"{name}.parquet", table)
        head = table.select(["sample_id", "split", "domain", "n_tokens"])
        write_table(folder / "sample_features" / f"{name}.parquet", head)
        np.save(folder / "sample_features" / f"{name}.npy", _embeddings(len(rows), rng, topics, weights))
        shards.append({"shard": name, "samples": len(rows)})
    no_duplicates = {
        "shard": pa.array([], pa.string()),
        "sample_id": pa.array([], pa.string()),
        "row": pa.array([], pa.int64()),
    }
    write_table(folder / "tokenized_samples" / "duplicates.parquet", pa.table(no_duplicates))
    accounting = {"fingerprint": FINGERPRINT, "fingerprint_parts": {}, "shards": shards}
    write_json(folder / "tokenized_samples" / "accounting.json", accounting)
    names = [shard["shard"] for shard in shards]
    manifest = {"fingerprint": FINGERPRINT, "dimension": DIMENSION, "shards": names, "signatures": None}
    write_json(folder / "sample_features" / "manifest.json", manifest)


def _samples(rows: NDArray[np.int64], rng: np.random.Generator, zipf: NDArray[np.float64]) -> pa.Table:
    n = len(rows)
    lengths = np.clip(np.exp(rng.normal(4.2, 0.8, n)), 8, 512).astype(np.int32)
    ends = np.cumsum(lengths)
    tokens = (2 + np.searchsorted(zipf, rng.random(int(ends[-1])))).astype(np.int32)
    tokens[ends - lengths] = 1  # beginning-of-sequence
    columns = {
        "sample_id": [hashlib.sha256(b"%d" % row).hexdigest() for row in rows],
        "doc_id": [f"{row:016x}" for row in rows],
        "split": np.where(rows < TUNING, "tuning", "pool").tolist(),
        "domain": [DOMAINS[i] for i in rng.choice(len(DOMAINS), n, p=[0.6, 0.3, 0.1])],
        "source": ["synthetic"] * n,
        "window": np.zeros(n, np.int32),
        "start": np.zeros(n, np.int32),
        "n_tokens": lengths,
        "n_special": np.ones(n, np.int32),
        "assistant_spans": [None] * n,
        "input_ids": pa.ListArray.from_arrays(pa.array(np.append(0, ends).astype(np.int32)), pa.array(tokens)),
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in SAMPLES}, schema=SAMPLES)


def _embeddings(
    n: int, rng: np.random.Generator, topics: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.float16]:
    spread = rng.uniform(0.5, 1.5, (n, 1)).astype(np.float32)
    x = topics[rng.choice(TOPICS, n, p=weights)] + spread * rng.standard_normal((n, DIMENSION), dtype=np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float16)


def signatures(
    sample_ids: list[str], sites: int = 16, width: int = 256, cells: int = 64, sketch: int = 32, pooled: int = 64
) -> Signatures:
    """Random activation signatures of samples, with the sizes of a small model and the defaults of `features`."""
    rng = np.random.default_rng(2)
    n = len(sample_ids)
    tokens = np.clip(np.exp(rng.normal(4.2, 0.8, n)), 8, 512).astype(np.int64)
    shares = rng.dirichlet(np.full(cells, 0.3), (n, sites))
    in_cells = np.floor(shares * tokens[:, None, None]).astype(np.int32)
    in_cells[:, :, 0] += (tokens[:, None] - in_cells.sum(axis=2)).astype(np.int32)
    y = rng.standard_normal((n, sites, sketch, sketch), dtype=np.float32)
    return Signatures(
        tuple(sample_ids),
        tuple(SignatureSite(f"layer.{i}", width, i * width) for i in range(sites)),
        tokens,
        rng.standard_normal((n, pooled), dtype=np.float32),
        in_cells,
        np.exp(rng.normal(0, 0.5, (n, sites * width))).astype(np.float32),
        y @ y.transpose(0, 1, 3, 2) * (tokens / sketch).astype(np.float32)[:, None, None, None],
    )
