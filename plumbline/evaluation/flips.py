"""Multiple-choice items: answers that quantization changes from correct to incorrect, or the other way.

Many answers may change while accuracy stays the same; the flips show that (Dutta et al. 2024, "Accuracy is Not All You
Need", arXiv:2407.09141).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from plumbline.artifact import sha256_json
from plumbline.divergence import predict
from plumbline.evaluation.held_out import HeldOut, HeldOutBatch, batches, predicted_logits


@dataclass(frozen=True)
class Item:
    """A question, its answers, and which of them is correct."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index into `choices`."""

    @property
    def item_id(self) -> str:
        """SHA-256 (hex) of the content."""
        return sha256_json([self.question, self.choices, self.answer])


def read_items(path: Path) -> list[Item]:
    """Items of a .jsonl file, an object with `question`, `choices` and `answer` per line, in order of their id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not an item, an item occurs twice, or there is none; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"params.yaml evaluation.items: {path} does not exist; give a .jsonl file, or null")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    items: dict[str, tuple[int, Item]] = {}
    for number, line in rows:
        item = _item(f"{path.name} line {number}", line)
        if (first := items.setdefault(item.item_id, (number, item))[0]) != number:
            raise ValueError(f"{path.name} line {number}: the same item as line {first}; remove one")
    if not items:
        raise ValueError(f"{path.name} has no line; expected objects with question, choices and answer")
    return [item for _, (_, item) in sorted(items.items())]


def _item(where: str, line: str) -> Item:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    fields = row if isinstance(row, dict) else {}
    question, choices, answer = (fields.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: question: expected a text, found {question!r:.80}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"{where}: choices: expected two texts or more, found {choices!r:.80}")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"{where}: answer: expected a number from 0 to {len(choices) - 1}, found {answer!r:.80}")
    return Item(question, tuple(choices), answer)


def encoded(items: Sequence[Item], tokenizer: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Token ids (int64) of "question choice" per item and choice, and the number of tokens of the choice (int64).

    The tokens of the choice are those after the tokens of the question alone, as in lm-evaluation-harness.

    Raises:
        ValueError: a choice adds no token.
    """
    sequences, counts = [], []
    for item in items:
        question = item.question.rstrip()
        before = len(tokenizer(question)["input_ids"]) - _closing(tokenizer)
        for choice in item.choices:
            ids = np.array(tokenizer(f"{question} {choice.strip()}")["input_ids"], np.int64)
            ids = ids[: len(ids) - _closing(tokenizer)]
            if len(ids) <= before:
                raise ValueError(f"the choice {choice!r:.60} of {question!r:.60} adds no token to the question")
            sequences.append(ids)
            counts.append(len(ids) - before)
    return sequences, np.array(counts)


def _closing(tokenizer: Any) -> int:
    """Number of special tokens that the tokenizer appends to a text; they do not count for a choice."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((index for index, flag in enumerate(reversed(special)) if not flag), 0)


def log_likelihoods(model: Any, sequences: Sequence[np.ndarray], counts: np.ndarray, batch_tokens: int) -> np.ndarray:
    """The `likelihoods` of a model in memory."""
    work = item_batches(sequences, batch_tokens)
    return likelihoods(lambda _, batch: predicted_logits(model, batch), work, counts)


def item_batches(sequences: Sequence[np.ndarray], batch_tokens: int) -> list[HeldOutBatch]:
    """The sequences in batches of at most `batch_tokens` tokens."""
    return list(batches(HeldOut([], [], [], list(sequences), {}), batch_tokens))


def likelihoods(
    logits: Callable[[int, HeldOutBatch], Tensor], work: Sequence[HeldOutBatch], counts: np.ndarray
) -> np.ndarray:
    """Log-likelihood of the last counts[s] tokens of each sequence given those before, in nats, float64 (S,).

    Args:
        logits: (number of a batch, batch) -> the model's logits at its predicted positions.
        work: the sequences in batches.
    """
    sums = np.zeros(len(counts))
    for index, batch in enumerate(work):
        rows = logits(index, batch)
        nll = predict(rows, batch.targets.to(rows.device)).nll.cpu().numpy()
        ends = np.cumsum(batch.predicted.sum(1).numpy())
        for row, end in zip(batch.rows, ends, strict=True):
            sums[row] = -nll[end - counts[row] : end].sum()
    return sums


def chosen(items: Sequence[Item], log_likelihood: np.ndarray) -> np.ndarray:
    """The most likely choice of each item, int64 (I,); the first of ties."""
    ends = np.cumsum([len(item.choices) for item in items])
    return np.array([int(part.argmax()) for part in np.split(log_likelihood, ends[:-1])])


def item_table(items: Sequence[Item], base: np.ndarray, quantized: np.ndarray) -> pa.Table:
    """A row per item: item_id, answer, chosen_base, chosen_quantized, correct_base, correct_quantized."""
    answer = np.array([item.answer for item in items])
    columns = {"answer": answer, "chosen_base": base, "chosen_quantized": quantized}
    correct = {"correct_base": base == answer, "correct_quantized": quantized == answer}
    return pa.table({"item_id": [item.item_id for item in items], **columns, **correct})


def flip_figures(table: pa.Table) -> dict[str, float | int]:
    """Counts of an `item_table`, and shares of 1: accuracies, `flips` (correctness changed), `changed` (any answer)."""
    base, quantized = (table[f"correct_{name}"].to_numpy() for name in ("base", "quantized"))
    lost, won = int((base & ~quantized).sum()), int((~base & quantized).sum())
    changed = table["chosen_base"].to_numpy() != table["chosen_quantized"].to_numpy()
    return {
        "items": len(base),
        "accuracy_base": float(base.mean()),
        "accuracy_quantized": float(quantized.mean()),
        "correct_to_incorrect": lost,
        "incorrect_to_correct": won,
        "flips": (lost + won) / len(base),
        "changed": float(changed.mean()),
    }
