"""A small folder of sources, and one call that ingests it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.raw_corpus.ingest import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """ingest(root, previous=..., **params) -> (artifact, summary); by default the folder `docs` is the one source."""
    count = 0

    def run(root: Path, previous: Path | None = None, hashes: Any = None, **params: Any) -> tuple[Path, dict[str, Any]]:
        nonlocal count
        count += 1
        out = tmp_path / "out" / str(count)
        out.mkdir(parents=True)
        params = {"sources": {"docs": {"kind": "directory", "path": "docs"}}, "max_rejected": 1.0, **params}
        return out, build_raw_corpus(CorpusParams.model_validate(params), root, out, previous, hashes)

    return run
