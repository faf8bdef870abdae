"""Evaluation of models that do not fit into memory: all batches go through one decoder layer, then the next.

The base model goes first, once for all quantized models of a run. What is kept of it is the output of its last layer,
from which the logits of a few batches at a time are computed. The figures are those of the whole models, bit by bit:
every batch goes through the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.pieces import Pieces
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.names import outside
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_pass import layer_outputs
from plumbline.base_model.streamed_quantized import StreamedQuantized
from plumbline.divergence import BasePrediction, TokenDivergence, predict, token_divergence
from plumbline.evaluation.flips import likelihoods
from plumbline.evaluation.held_out import HeldOutBatch, at_predicted
from plumbline.evaluation.measure import in_order
from plumbline.evaluation.saved_states import SavedStates

Progress = Callable[[int], object]
"""Called after each batch and layer with the batch's number of tokens, padding included."""


class LastStates:
    """The output of a model's last decoder layer for some batches, and the logits from it."""

    def __init__(
        self,
        streamed: StreamedModel | StreamedQuantized,
        work: Sequence[HeldOutBatch],
        hidden: HiddenStates,
        saved: SavedStates | None = None,
        progress: Progress = lambda tokens: None,
    ) -> None:
        """Run the model.

        Args:
            hidden: empty. Its scratch folder may go once this returns.
            saved: where the output of every layer is put on disk; layers that are there are not run again.

        Raises:
            ValueError: the model cannot be run layer by layer.
        """
        self.streamed, self.work = streamed, work
        self.decoder = Decoder(streamed.model)
        self._around = outside(self.decoder.name)
        self._hidden = hidden
        calls = DecoderCalls(self.decoder, partial(streamed.present, self._around))
        with streamed.present(self._around):
            for row, batch in enumerate(work):
                hidden[row] = calls.begin(batch.input_ids)
        done = 0 if saved is None else saved.read(hidden)
        progress(done * sum(batch.input_ids.numel() for batch in work))
        for number, name in list(enumerate(self.decoder.names))[done:]:
            run = partial(self._through, number, calls)
            for row, output in enumerate(layer_outputs(streamed, name, len(work), run, hidden.scratch)):
                hidden[row] = output
                progress(work[row].input_ids.numel())
            if saved is not None:
                saved.write(number, hidden)

    def _through(self, number: int, calls: DecoderCalls, row: int) -> Tensor:
        """What a decoder layer computes for a batch."""
        hidden = self._hidden[row].to(self.streamed.device)
        return self.decoder.run(number, hidden, calls.call(number, self.work[row].input_ids))

    def save(self, pieces: Pieces, model: str) -> None:
        """Put them on disk for an evaluation that did not run the model itself.

        Args:
            model: as in `SavedStates`.
        """
        SavedStates(pieces, model, self.decoder.names, len(self.work)).complete(self._hidden)

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
