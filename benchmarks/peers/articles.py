"""The real model as a subject: a folder such as benchmarks/smollm2.py writes, and a text of articles.

Articles are documents. Calibration windows and held-out documents come from different articles, both drawn with one
seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.subjects import Subject, held_out_of, recast, write_set
from plumbline.base_model.load import load_tokenizer

NAME = "SmolLM2-135M"
GROUP_SIZE = 64
"""128 does not divide its 576 channels."""
HEADING = re.compile(r"(?m)^ = (?=[^=])")
"""Begins an article in the text of WikiText."""
SHORTEST = 2000
"""Characters; shorter articles are left out."""


STORIES = "stories260K"
"""A real model of 0.26 M weights; its text has no headings and is cut into pieces."""
PIECE = 1500
"""Characters of a piece, to the end of its line."""


@dataclass(frozen=True)
class Articles:
    """What is read and how much of it."""

    model: Path
    texts: Path
    samples: int = 32
    length: int = 512
    documents: int = 24
    document_tokens: int = 256
    name: str = NAME
    group_size: int = GROUP_SIZE


def articles(text: str) -> list[str]:
    """The articles of a text in WikiText's form, " = Title = " before each, in order, without the short ones."""
    return [part for part in HEADING.split(text) if len(part) > SHORTEST]


def pieces(text: str, size: int) -> list[str]:
    """A text cut at ends of lines into pieces of at least `size` characters; the last is the rest, possibly empty."""
    parts, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if len(current) >= size:
            parts.append(current)
            current = ""
    return [*parts, current]


def split(documents: list[list[int]], settings: Articles) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Calibration windows (int32), held-out beginnings of documents (int64), and which documents these are.

    Args:
        documents: token ids of every article.

    Raises:
        ValueError: too few articles.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(documents))
    held_out, rest = order[: settings.documents], order[settings.documents :]
    windows = [
        np.array(documents[i][start : start + settings.length], np.int32)
        for i in rest
        for start in range(0, len(documents[i]) - settings.length + 1, settings.length)
    ]
    if len(held_out) < settings.documents or len(windows) < settings.samples:
        raise ValueError(
            f"{settings.texts.name}: {len(documents)} articles give {len(windows)} windows of {settings.length} tokens "
            f"beside {settings.documents} held-out documents; need {settings.samples}: name a longer text, or fewer of "
            "both"
        )
    chosen = rng.permutation(len(windows))[: settings.samples]
    beginnings = [np.array(documents[i][: settings.document_tokens], np.int64) for i in held_out]
    return [windows[i] for i in chosen], beginnings, [int(i) for i in held_out]


def subject_of_articles(settings: Articles, work: Path, dtype: str = "float32") -> Subject:
    """The real model with its samples, written to `work`; deterministic."""
    folder = work / settings.name
    model = recast(settings.model, folder / f"model-{dtype}", dtype)
    tokenizer = load_tokenizer(model)
    text = settings.texts.read_text(encoding="utf-8")
    documents = articles(text) if HEADING.search(text) else pieces(text, PIECE)[:-1]
    ids = [tokenizer(part)["input_ids"] for part in documents]
    samples, beginnings, rows = split(ids, settings)
    calibration = folder / f"samples-{settings.samples}x{settings.length}"
    calibration.mkdir(parents=True, exist_ok=True)
    write_set(calibration, settings.name, samples)
    held_out = held_out_of(["articles"] * len(rows), [f"article-{row:04d}" for row in rows], beginnings)
    return Subject(settings.name, model, calibration, held_out, settings.group_size)
