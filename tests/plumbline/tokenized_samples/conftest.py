"""A byte-level tokenizer of our own, and a corpus out of a list of documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from tests.helpers.tokenizer import make_tokenizer


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(**options: Any) -> Path:
        folder = tmp_path / "tokenizers" / "-".join(f"{k}{v}" for k, v in options.items())[:40] / "model"
        make_tokenizer(**options).save_pretrained(folder)
        (folder / "config.json").write_text("{}")
        return folder

    return make


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Path]:
    """corpus_of({"file": [text or messages, ...]}) -> raw_corpus folder; the file's name is the domain.

    `production` and `out_of_domain` give the files of those sources.
    """
    count = 0

    def make(files: dict[str, list[Any]], previous: Path | None = None, **apart: dict[str, list[Any]]) -> Path:
        nonlocal count
        count += 1
        root, out = tmp_path / f"root{count}", tmp_path / f"corpus{count}"
        out.mkdir()
        folders = {"docs": files, **apart}
        written = [(folder, *file) for folder, files_of in folders.items() for file in files_of.items()]
        for folder, name, rows in written:
            path = root / folder / name / "rows.jsonl"
            path.parent.mkdir(parents=True)
            objects = [{"text": row} if isinstance(row, str) else {"messages": row} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in objects))
        sources = {name: {"kind": "directory", "path": name} for name in folders}
        params = CorpusParams.model_validate({"sources": {"docs": sources.pop("docs")}, **sources})
        build_raw_corpus(params, root, out, previous)
        return out

    return make
