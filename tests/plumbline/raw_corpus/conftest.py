"""A small folder of sources, and one call that ingests it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.raw_corpus.summary import summary as summary_of
from tests.helpers.log import numbers_logged


@pytest.fixture
def ingest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """ingest(root, previous=..., **params) -> (artifact, summary); by default the folder `docs` is the one source.

    The summary says in `reused_shards`, too, how many shards of `previous` were taken over.
    """
    caplog.set_level(logging.INFO, "plumbline")
    count = 0

    def run(root: Path, previous: Path | None = None, hashes: Any = None, **params: Any) -> tuple[Path, dict[str, Any]]:
        nonlocal count
        count += 1
        out = tmp_path / "out" / str(count)
        out.mkdir(parents=True)
        params = {"sources": {"docs": {"kind": "directory", "path": "docs"}}, "max_rejected": 1.0, **params}
        build_raw_corpus(CorpusParams.model_validate(params), root, out, previous, hashes)
        return out, {**summary_of(out), "reused_shards": numbers_logged(caplog, "took over")[0]}

    return run
