"""The rows that raw_corpus set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from plumbline.artifact import read_json
from plumbline.raw_corpus.shards import rejected_path


def rejected_rows(corpus: Path) -> list[dict[str, Any]]:
    """Every row rejected from its file: file, row (None: the whole file), reason, detail."""
    paths = [rejected_path(corpus, shard["shard"]) for shard in read_json(corpus / "manifest.json")["shards"]]
    return [row for path in paths if path.is_file() for row in pq.read_table(path).to_pylist()]
