"""Windows of the standard library's modules, as token ids of the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import write_table
from plumbline.base_model.folder import BUNDLED
from plumbline.base_model.load import load_tokenizer
from plumbline.raw_corpus.sources.python_stdlib import modules, split_docstrings
from plumbline.tokenized_samples.splits import split_of

LENGTH = 128
"""Tokens of a window; the first begins the text."""
CHARACTERS = 4_000
"""Of a module's prose, and of its code, that are read: many modules, little of each."""


@dataclass(frozen=True)
class Windows:
    """Domain, document and token ids of windows; `ids` is int64 (windows, LENGTH)."""

    domains: list[str]
    documents: list[str]
    ids: np.ndarray


def windows(split: str, number: int, work: Path, per_document: int = 4) -> Windows:
    """`number` windows of a split, "pool" or "report": of modules in random order, half of it prose and half code.

    They are written to `work` once.

    Args:
        per_document: windows of a document at most.

    Raises:
        ValueError: the split has fewer windows.
    """
    file = work / f"windows-{split}-{number}x{LENGTH}-{per_document}.parquet"
    if not file.is_file():
        chosen: dict[str, list[tuple[str, np.ndarray]]] = {"code": [], "prose": []}
        for domain, document, ids in _cut(split, per_document):
            if len(chosen[domain]) < number // 2:
                chosen[domain].append((document, ids))
            elif all(len(rows) == number // 2 for rows in chosen.values()):
                break
        rows = [(domain, document, ids) for domain, pairs in chosen.items() for document, ids in pairs]
        if len(rows) < number // 2 * 2:
            raise ValueError(f"{split}: {len(rows)} windows of {LENGTH} tokens, {number} wanted; ask for fewer")
        domains, documents, ids_of = (list(column) for column in zip(*rows, strict=True))
        work.mkdir(parents=True, exist_ok=True)
        write_table(file, pa.table({"domain": domains, "document": documents, "input_ids": ids_of}))
    table = pq.read_table(file)
    all_ids = np.array(table["input_ids"].to_pylist(), np.int64)
    return Windows(table["domain"].to_pylist(), table["document"].to_pylist(), all_ids)


def _cut(split: str, per_document: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """(domain, document, token ids) of the modules of a split in random order."""
    tokenizer = load_tokenizer(BUNDLED)
    begin = np.array([tokenizer.bos_token_id], np.int32)
    members = [(name, path) for name, path in modules() if split_of(name) == split]
    for row in np.random.default_rng(0).permutation(len(members)):
        name, path = members[row]
        try:
            prose, code = split_docstrings(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # modules that the interpreter keeps to test its errors
        for domain, text in (("prose", prose), ("code", code)):
            content = np.array(tokenizer(text[:CHARACTERS], add_special_tokens=False)["input_ids"], np.int32)
            starts = range(0, len(content) - LENGTH + 2, LENGTH - 1)
            for start in starts[:per_document]:
                yield domain, f"{domain}-{name}", np.concatenate([begin, content[start : start + LENGTH - 1]])
