"""Evaluation of models that do not fit into memory: all batches go through one decoder layer, then the next.

The base model goes first, once for all quantized models of a run. What is kept of it is the output of its last layer,
from which the logits of a few batches at a time are computed. The figures are those of the whole models, bit by bit:
every batch goes through the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.names import outside, within
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_quantized import StreamedQuantized
from plumbline.divergence import BasePrediction, TokenDivergence, predict, token_divergence
from plumbline.evaluation.flips import likelihoods
from plumbline.evaluation.held_out import HeldOutBatch, at_predicted
from plumbline.evaluation.measure import in_order

Progress = Callable[[int], object]
"""Called after each batch and layer with the batch's number of tokens, padding included."""


class LastStates:
    """The output of a model's last decoder layer for some batches, and the logits from it."""

    def __init__(
        self,
        streamed: StreamedModel | StreamedQuantized,
        work: Sequence[HeldOutBatch],
        scratch: Path,
        in_memory: int,
        progress: Progress = lambda tokens: None,
    ) -> None:
        """Run the model.

        Args:
            scratch: an existing folder for hidden states beyond `in_memory` bytes. It may go once this returns.

        Raises:
            ValueError: the model cannot be run layer by layer.
        """
        self.streamed, self.work = streamed, work
        self.decoder = Decoder(streamed.model)
        self._around = outside(self.decoder.name)
        self._hidden = HiddenStates(in_memory, scratch)
        calls = DecoderCalls(self.decoder, partial(streamed.present, self._around))
        with streamed.present(self._around):
            for row, batch in enumerate(work):
                self._hidden[row] = calls.begin(batch.input_ids)
        for number, name in enumerate(self.decoder.names):
            with streamed.present(within(name)):
                for row, batch in enumerate(work):
                    x, call = self._hidden[row].to(streamed.device), calls.call(number, batch.input_ids)
                    self._hidden[row] = self.decoder.run(number, x, call)
                    progress(batch.input_ids.numel())

    @contextmanager
    def head(self) -> Iterator[None]:
        """Within the context, `logits` may be called."""
        with self.streamed.present(self._around):
            yield

    @torch.no_grad()
    def logits(self, row: int) -> Tensor:
        """The logits of a batch at its predicted positions, (predicted tokens, vocabulary)."""
        batch = self.work[row]
        hidden = self._hidden[row].to(self.streamed.device)
        return at_predicted(self.decoder.logits(batch.input_ids, hidden), batch)


def measure_layerwise(base: LastStates, quantized: LastStates, budget: int) -> tuple[TokenDivergence, np.ndarray]:
    """What `measure` returns for the two models.

    Args:
        base, quantized: over the same batches.
        budget: bytes of base logits to hold at a time; one batch in any case. The two models' weights outside the
            layers are in memory one after the other, so each is read once per so many bytes.
    """
    parts: list[TokenDivergence] = []
    while len(parts) < len(base.work):
        kept: list[BasePrediction] = []
        size = 0
        with base.head():
            while len(parts) + len(kept) < len(base.work) and (not kept or size < budget):
                row = len(parts) + len(kept)
                logits = base.logits(row)
                kept.append(predict(logits, base.work[row].targets.to(logits.device)))
                size += logits.numel() * logits.element_size()
        with quantized.head():
            for prediction in kept:
                parts.append(token_divergence(prediction, quantized.logits(len(parts))))
    return in_order(parts, base.work)


def likelihoods_layerwise(states: LastStates, counts: np.ndarray) -> np.ndarray:
    """The `likelihoods` of a model whose items are its batches."""
    with states.head():
        return likelihoods(lambda row, _: states.logits(row), states.work, counts)
