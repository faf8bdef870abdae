"""The base model's predictions on the report split, computed once for all quantized models of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plumbline.divergence import BasePrediction, predict
from plumbline.evaluation.held_out import HeldOutBatch, predicted_logits


class BaseLogits:
    """Base predictions per batch: cached in memory up to `budget` bytes, the others recomputed per use.

    They are stored in the model's dtype, at all positions and for the whole vocabulary, without rounding or cutting
    (16-bit storage with a floor biases KL: ik_llama.cpp #325).
    """

    def __init__(self, load: Callable[[], Any], batches: Sequence[HeldOutBatch], budget: int) -> None:
        """`load` returns the base model; it is called on first use, and the model is released once all is cached."""
        self._load, self._batches, self._budget = load, batches, budget
        self._model: Any = None
        self._kept: dict[int, BasePrediction] = {}
        self._bytes = 0

    def __getitem__(self, index: int) -> BasePrediction:
        """The prediction for batch `index`; the same object on every call if it is cached."""
        if index in self._kept:
            return self._kept[index]
        if self._model is None:
            self._model = self._load()
        batch = self._batches[index]
        prediction = predict(predicted_logits(self._model, batch), batch.targets.to(self._model.device))
        size = prediction.logits.numel() * prediction.logits.element_size()
        if self._bytes + size <= self._budget:
            self._bytes += size
            self._kept[index] = prediction
            if len(self._kept) == len(self._batches):
                self._model = None
        return prediction


_latest: tuple[tuple[str, ...], BaseLogits] | None = None


def shared_base_logits(
    key: tuple[str, ...], load: Callable[[], Any], batches: Sequence[HeldOutBatch], budget: int
) -> BaseLogits:
    """The `BaseLogits` of this process for `key`: digests of base model, samples and evaluation parameters.

    One entry, since the quantized models of a run share one base model; a new key replaces it.
    """
    global _latest
    if _latest is None or _latest[0] != key:
        _latest = (key, BaseLogits(load, batches, budget))
    return _latest[1]
