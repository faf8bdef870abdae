"""The texts that an engine scores: held-out samples of the workspace, or files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plumbline.evaluation.held_out import choose
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected

TEXTS = 20
TOKENS = 128
"""Most tokens of a text; more cost time and hardly change a mean."""
SHORTEST = 2
"""The first token is not predicted."""
MAX_TEXT = 1 << 24


def of_workspace(root: Path, count: int = TEXTS, tokens: int = TOKENS) -> list[list[int]]:
    """The beginnings of samples of the report split, each of another document, from all domains in turn.

    Raises:
        ValueError: the report split is empty.
        FileNotFoundError: there are no samples yet.
    """
    samples = root / "data" / "tokenized_samples"
    if not samples.is_dir():
        raise FileNotFoundError(f"{root} has no data/tokenized_samples; `plumbline run` makes it, or give --texts FILE")
    held_out = choose(samples, count * tokens, 1, tokens_per_sample=tokens)
    by_domain: dict[str, list[list[int]]] = {}
    for domain, ids in zip(held_out.domains, held_out.tokens, strict=True):
        if len(ids) >= SHORTEST:
            by_domain.setdefault(domain, []).append(ids.tolist())
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_domain.values()))
    return list(itertools.islice((ids for ids in in_turn if ids is not None), count))


def of_files(files: Sequence[Path], tokenizer: Any, count: int = TEXTS, tokens: int = TOKENS) -> list[list[int]]:
    """The beginnings of the first texts in files: .jsonl with a `text` a line, or any other file as one text.

    Raises:
        ValueError: a row or a file holds no text, or there is no text of two tokens or more.
    """
    texts = itertools.islice(itertools.chain.from_iterable(map(_texts, files)), count)
    prompts = [list(tokenizer(text)["input_ids"][:tokens]) for text in texts]
    prompts = [ids for ids in prompts if len(ids) >= SHORTEST]
    if not prompts:
        raise ValueError(f"{', '.join(map(str, files))}: no text of {SHORTEST} tokens or more")
    return prompts


def _texts(file: Path) -> Iterator[str]:
    reader = RowReader(file.name, "", MAX_TEXT)
    with file.open("rb") as stream:
        rows = reader.json_lines(stream) if file.suffix == ".jsonl" else iter([reader.text(0, stream.read())])
        for number, row in enumerate(rows, 1):
            if isinstance(row, Rejected):
                raise ValueError(f"{file} row {number}: {row.reason} ({row.detail}); correct or remove it")
            if row.text is None:
                raise ValueError(f"{file} row {number}: a chat; give rows with a `text`")
            yield row.text
