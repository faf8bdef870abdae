"""The samples of the report split that are evaluated, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plumbline.artifact import sha256_json
from plumbline.tokenized_samples.reader import iter_samples, read_samples


@dataclass(frozen=True)
class HeldOut:
    """Samples of a split in order of domain, document and reading order."""

    sample_ids: list[str]
    doc_ids: list[str]
    domains: list[str]
    tokens: list[np.ndarray]
    """Per sample its token ids, int64."""
    choice: dict[str, dict[str, int]]
    """Per domain: documents, samples and tokens of the split, and how many of them are evaluated."""

    @property
    def digest(self) -> str:
        """SHA-256 of the sample ids in order; a sample id is the digest of all of the sample's tokens."""
        return sha256_json(self.sample_ids)


@dataclass(frozen=True)
class HeldOutBatch:
    """Samples of similar length, padded on the right."""

    rows: np.ndarray
    """int64 (B,): which samples."""
    input_ids: torch.Tensor
    """int64 (B, T)."""
    predicted: torch.Tensor
    """bool (B, T - 1): position t predicts a real token at t + 1. First tokens of samples and padding are not
    predicted."""

    @property
    def targets(self) -> torch.Tensor:
        """int64 (predicted tokens,): the next tokens, sample after sample."""
        return self.input_ids[:, 1:][self.predicted]


def choose(
    samples: Path,
    tokens_per_domain: int | None,
    samples_per_document: int | None,
    split: str = "report",
    tokens_per_sample: int | None = None,
) -> HeldOut:
    """Choose the part of a split that is evaluated, by content alone.

    Per domain, documents in order of their id (a hash, so in random order) until there are `tokens_per_domain` tokens.
    Of a document, the `samples_per_document` windows with the lowest sample ids, again in random order, because the
    first windows of documents are alike (licences, imports, titles). Of a sample, its first `tokens_per_sample` tokens.
    None: no limit.

    Raises:
        ValueError: the report split is empty; another may be.
    """
    table = read_samples(samples, [split], ["sample_id", "doc_id", "domain", "n_tokens"])
    if not table.num_rows and split == "report":
        raise ValueError(
            f"{samples}: the report split has no sample, so nothing can be evaluated; raise `tokenize.splits.report` "
            "in params.yaml or add documents to the corpus"
        )
    sample_id, doc_id, domain = (table[name].to_pylist() for name in ("sample_id", "doc_id", "domain"))
    n_tokens = [n if tokens_per_sample is None else min(n, tokens_per_sample) for n in table["n_tokens"].to_pylist()]
    windows: dict[str, dict[str, list[int]]] = {}
    for row in range(table.num_rows):
        windows.setdefault(domain[row], {}).setdefault(doc_id[row], []).append(row)
    taken: list[int] = []
    choice: dict[str, dict[str, int]] = {}
    for name, documents in sorted(windows.items()):
        counts = {"documents": 0, "samples": 0, "tokens": 0}
        for document in sorted(documents):
            if tokens_per_domain is not None and counts["tokens"] >= tokens_per_domain:
                break
            rows = sorted(sorted(documents[document], key=lambda row: sample_id[row])[:samples_per_document])
            taken += rows
            counts["documents"] += 1
            counts["samples"] += len(rows)
            counts["tokens"] += sum(n_tokens[row] for row in rows)
        everything = [row for rows in documents.values() for row in rows]
        choice[name] = {
            **counts,
            "documents_available": len(documents),
            "samples_available": len(everything),
            "tokens_available": sum(n_tokens[row] for row in everything),
        }
    chosen = [sample_id[row] for row in taken]
    tokens_of = _tokens(samples, split, set(chosen))
    return HeldOut(
        chosen,
        [doc_id[row] for row in taken],
        [domain[row] for row in taken],
        [tokens_of[name][:tokens_per_sample] for name in chosen],
        choice,
    )


def _tokens(samples: Path, split: str, wanted: set[str]) -> dict[str, np.ndarray]:
    """Token ids, int64, of the wanted samples only, since the split may not fit into memory."""
    tokens: dict[str, np.ndarray] = {}
    for batch in iter_samples(samples, [split], ["sample_id", "input_ids"]):
        for sample_id, ids in zip(batch["sample_id"].to_pylist(), batch["input_ids"], strict=True):
            if sample_id in wanted:
                tokens[sample_id] = ids.values.to_numpy().astype(np.int64)
    return tokens


def batches(held_out: HeldOut, batch_tokens: int) -> Iterator[HeldOutBatch]:
    """Batches of samples by length, longest first, of at most `batch_tokens` tokens including padding."""
    lengths = np.array([len(ids) for ids in held_out.tokens])
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = order[start : start + max(1, batch_tokens // longest)]
        input_ids = torch.zeros((len(rows), longest), dtype=torch.int64)
        for i, row in enumerate(rows):
            input_ids[i, : lengths[row]] = torch.from_numpy(held_out.tokens[row])
        predicted = torch.arange(1, longest) < torch.from_numpy(lengths[rows]).unsqueeze(1)
        yield HeldOutBatch(rows, input_ids, predicted)
        start += len(rows)


def predicted_logits(model: Any, batch: HeldOutBatch) -> torch.Tensor:
    """The model's logits at the predicted positions, (predicted tokens, vocabulary), in its dtype.

    Padding is on the right, where causal attention does not see it. So no attention mask is needed, which would prevent
    the fast attention kernel, and the logits of padding are not read.
    """
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=batch.input_ids.to(model.device), use_cache=False).logits
        return at_predicted(logits, batch)


def at_predicted(logits: torch.Tensor, batch: HeldOutBatch) -> torch.Tensor:
    """The logits (B, T, vocabulary) of a batch at the predicted positions, (predicted tokens, vocabulary)."""
    return logits[:, :-1][batch.predicted.to(logits.device)]
