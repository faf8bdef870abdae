"""A sample_features artifact written by its format, without an embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.artifact import write_json, write_table
from tests.helpers.tokenized_samples import FINGERPRINT


def write_features(folder: Path, samples: list[dict[str, Any]], **manifest: Any) -> Path:
    """A sample_features artifact of embeddings, without signatures."""
    folder.mkdir()
    table = pa.table({name: [row[name] for row in samples] for name in ("sample_id", "split", "domain", "n_tokens")})
    write_table(folder / "shard.parquet", table)
    x = np.random.default_rng(0).normal(size=(len(samples), 8))
    np.save(folder / "shard.npy", (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16))
    settings = {"embedder": "nowhere", "embedder_digest": "0", "max_tokens": 16, "matmul_precision": "highest"}
    about = {"fingerprint": FINGERPRINT, "dimension": 8, "samples": len(samples), "shards": ["shard"]}
    write_json(folder / "manifest.json", {**settings, **about, "signatures": None, **manifest})
    return folder
