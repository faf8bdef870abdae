"""Comparison of a quantized model with the base model's predictions, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plumbline.divergence import TokenDivergence, token_divergence
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import HeldOutBatch, predicted_logits
from plumbline.progress import Bar


def measure(
    base: BaseLogits, model: Any, work: Sequence[HeldOutBatch], *, progress: bool = False
) -> tuple[TokenDivergence, np.ndarray]:
    """Compare both models on the same batches: an entry per predicted token, and the sample (int64) of each.

    Tokens are in order of sample and position, independent of the batches.

    Args:
        base: the base model's predictions on `work`.
        model: the quantized model.
        progress: say how far it is.
    """
    bar = Bar(work, desc="evaluation", unit="batches", disable=None if progress else True)
    parts = [token_divergence(base[index], predicted_logits(model, batch)) for index, batch in enumerate(bar)]
    return in_order(parts, work)


def in_order(parts: Sequence[TokenDivergence], work: Sequence[HeldOutBatch]) -> tuple[TokenDivergence, np.ndarray]:
    """The divergences of all batches as `measure` returns them."""
    sample_of_token = np.concatenate([np.repeat(batch.rows, batch.predicted.sum(1).numpy()) for batch in work])
    order = np.argsort(sample_of_token, kind="stable")
    columns = (np.concatenate(column)[order] for column in zip(*map(_columns, parts), strict=True))
    return TokenDivergence(*columns), sample_of_token[order]


def _columns(part: TokenDivergence) -> tuple[np.ndarray, ...]:
    return part.kl, part.nll_base, part.nll_quantized, part.agree
