"""A calibration set on disk, for the stages after it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.reader import SCHEMA, set_digest


def write_set(folder: Path, n: int = 6, seed: int = 0, spans: list[int] | None = None, vocabulary: int = 96) -> None:
    """A calibration set as its stage writes it; an assistant wrote what `spans` say of every sample."""
    g = torch.Generator().manual_seed(seed)
    rows = [
        {
            "position": i,
            "sample_id": f"{seed}{i:063x}",
            "doc_ids": [f"doc-{i}"],
            "domain": "prose",
            "source": "test",
            "n_tokens": 32,
            "input_ids": torch.randint(0, vocabulary, (32,), generator=g).tolist(),
            "reason": "{}",
            "parents": [],
            "assistant_spans": spans,
        }
        for i in range(n)
    ]
    folder.mkdir(parents=True)
    write_table(folder / "samples.parquet", pa.Table.from_pylist(rows, SCHEMA))
    manifest = {
        "choice": {"name": "six", "strategy": "random", "n": n, "seed": seed, "domains": None},
        "fingerprint": "f" * 64,
        "fingerprint_parts": {"max_length": 512},
        "digest": set_digest([str(row["sample_id"]) for row in rows], "f" * 64),
        "samples": n,
        "tokens": 32 * n,
    }
    write_json(folder / "manifest.json", manifest)
