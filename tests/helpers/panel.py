"""A corpus of two domains whose samples differ in length, words and embedding, drawn by its formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plumbline.calibration_set.representativeness.panel import Panel
from plumbline.calibration_set.representativeness.part import Part, part

BOS, VOCABULARY, DIMENSION = 1, 300, 12
DOMAINS = ("code", "prose")


def plain_part(
    lengths: Sequence[int],
    domains: Sequence[int] | None = None,
    *,
    ids: Sequence[Sequence[int]] | None = None,
    embeddings: Any = None,
    documents: Sequence[str] | None = None,
    signatures: Any = None,
) -> Part:
    """Samples of which only what is given matters; domains by number, of two."""
    tokens = [np.full(n, 7, np.int32) for n in lengths] if ids is None else [np.array(row, np.int32) for row in ids]
    by_domain = np.zeros((len(tokens), 2), np.int64)
    for row, domain in enumerate(domains or [0] * len(tokens)):
        by_domain[row, domain] = len(tokens[row])
    return part(tokens, by_domain, documents or [str(i) for i in range(len(tokens))], embeddings, signatures)


def corpus(n: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, list[str], np.ndarray]:
    """Token ids, domain, document and embedding of n samples; three samples to a document."""
    rng = np.random.default_rng(seed)
    zipf = 1 / np.arange(1, VOCABULARY + 1) ** 1.1
    words = {0: rng.permuted(np.arange(2, VOCABULARY + 2)), 1: np.arange(2, VOCABULARY + 2)}
    words[0] = np.random.default_rng(0).permutation(np.arange(2, VOCABULARY + 2))  # the same in every corpus
    centres = np.random.default_rng(1).normal(size=(2, 5, DIMENSION))
    ids, domain, documents, embeddings = [], [], [], []
    for number in range(n):
        if number % 3 == 0:
            d, topic = int(rng.random() < 0.7), int(rng.integers(5))
        length = int(np.clip(rng.lognormal(4, 0.6), 8, 300))
        ids.append(np.concatenate([[BOS], rng.choice(words[d], length - 1, p=zipf / zipf.sum())]).astype(np.int32))
        domain.append(d)
        documents.append(f"{seed}-{number // 3}")
        embeddings.append(centres[d, topic] + rng.normal(size=DIMENSION))
    found = np.array(embeddings)
    return ids, np.array(domain), documents, found / np.linalg.norm(found, axis=1, keepdims=True)


def as_part(ids: Sequence[Any], domain: Any, documents: Sequence[str], embeddings: Any) -> Part:
    return plain_part([], list(domain), ids=list(ids), documents=documents, embeddings=embeddings)


def panel_of(population: Part, production: Part, draws: int = 200, **more: Any) -> Panel:
    return Panel.prepare("tuning", population, production, [BOS], lambda i: f"<{i}>", DOMAINS, draws=draws, **more)
