"""Evaluation of a quantized model against the base model on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.pieces import Pieces
from plumbline.artifact import read_json, sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import layer_names
from plumbline.base_model.folder import quantization_of
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.streamed_quantized import StreamedQuantized
from plumbline.divergence import TokenDivergence
from plumbline.evaluation.base_logits import shared_base_logits
from plumbline.evaluation.flips import chosen, encoded, item_batches, item_table, log_likelihoods, read_items
from plumbline.evaluation.held_out import HeldOut, HeldOutBatch, batches
from plumbline.evaluation.layerwise import LastStates, likelihoods_layerwise, measure_layerwise
from plumbline.evaluation.measure import measure
from plumbline.evaluation.metrics import subset
from plumbline.evaluation.params import EvaluationParams
from plumbline.evaluation.saved_states import Figures, SavedStates, figures
from plumbline.progress import OVER_LAYERS, Bar

REMEMBERED = 8
"""Measurements in memory. A repeated one recurs after as many evaluations as there are schemes."""
SAMPLE = "sample_of_token"
_of_base: dict[tuple[str, ...], LastStates] = {}
_measured: dict[tuple[str, ...], tuple[TokenDivergence, np.ndarray]] = {}


def divergences(
    params: EvaluationParams,
    base: BaseCheckpoint,
    base_digest: str,
    quantized: Path,
    weights: dict[str, str],
    parts: Sequence[HeldOut],
    layerwise: Layerwise | None = None,
) -> list[tuple[TokenDivergence, np.ndarray]]:
    """Measure both models over the same batches, with a result of `measure` per part.

    A batch has samples of one part only, so that the first part gives the same bits with or without others. Models with
    the same weights are measured once: rounding to nearest gives one model for all calibration sets.

    Args:
        layerwise: how to run the models layer by layer, which gives the same bits; None: both in memory.
    """
    conditions = (base_digest, sha256_json([part.digest for part in parts]), params.model_dump_json(), base.device)
    key = (*conditions, decisive(quantized, weights))
    ends = list(accumulate(len(part.sample_ids) for part in parts))
    if key not in _measured:
        work = [
            replace(batch, rows=batch.rows + end - len(part.sample_ids))
            for part, end in zip(parts, ends, strict=True)
            for batch in batches(part, params.batch_tokens)
        ]
        while len(_measured) >= REMEMBERED:
            del _measured[next(iter(_measured))]
        if layerwise is None:
            logits = shared_base_logits(conditions, base.loaded, work, params.base_logits_bytes)
            model = load_model(quantized, base.device, base.trust_remote_code)
            _measured[key] = measure(logits, model, work, progress=True)
        else:
            _measured[key] = layerwise.measured(conditions, base, quantized, work)
    tokens, sample_of_token = _measured[key]
    measurements = []
    for part, end in zip(parts, ends, strict=True):
        rows = sample_of_token - (end - len(part.sample_ids))
        inside = (rows >= 0) & (rows < len(part.sample_ids))
        measurements.append((subset(tokens, inside), rows[inside]))
    return measurements


def answers(
    params: EvaluationParams, base: BaseCheckpoint, quantized: Path, layerwise: Layerwise | None = None
) -> pa.Table:
    """The `item_table` of the choices of both models."""
    assert params.items is not None
    items = read_items(base.root / params.items)
    sequences, counts = encoded(items, base.tokenizer())
    if layerwise is None:
        models = base.loaded(), load_model(quantized, base.device, base.trust_remote_code)
        likely = [log_likelihoods(model, sequences, counts, params.batch_tokens) for model in models]
    else:
        work = item_batches(sequences, params.batch_tokens)
        likely = layerwise.likelihoods(base, quantized, work, counts)
    return item_table(items, *(chosen(items, of_model) for of_model in likely))


@dataclass(frozen=True)
class Layerwise:
    """How models are run layer by layer.

    Attributes:
        scratch: an existing folder for hidden states that do not stay in memory.
        hidden: bytes of hidden states in memory, of both models together.
        logits: bytes of base logits in memory.
        pieces: the points to resume from; None: there are none.
    """

    scratch: Path
    hidden: int
    logits: int
    pieces: Pieces | None = None

    def measured(
        self, conditions: tuple[str, ...], base: BaseCheckpoint, quantized: Path, work: Sequence[HeldOutBatch]
    ) -> tuple[TokenDivergence, np.ndarray]:
        """What `measure` returns for the two models.

        Args:
            conditions: that decide what the base model computes.
        """

        def compute() -> Figures:
            states = (
                self.of_base(conditions, base, work),
                self.states("quantized", self.opened(base, quantized), work),
            )
            tokens, sample_of_token = measure_layerwise(*states, self.logits)
            return {**vars(tokens), SAMPLE: sample_of_token}

        found = dict(self._figures("divergence", compute))
        sample_of_token = found.pop(SAMPLE)
        return TokenDivergence(**found), sample_of_token

    def likelihoods(
        self, base: BaseCheckpoint, quantized: Path, work: Sequence[HeldOutBatch], counts: np.ndarray
    ) -> list[np.ndarray]:
        """The `likelihoods` of both models, whose items are the batches."""

        def of(model: str, opened: Callable[[], StreamedModel | StreamedQuantized]) -> np.ndarray:
            def compute() -> Figures:
                return {"likely": likelihoods_layerwise(self.states(f"items.{model}", opened(), work), counts)}

            return self._figures(f"likelihoods.{model}", compute)["likely"]

        return [of("base", base.streamed), of("quantized", partial(self.opened, base, quantized))]

    def states(
        self, model: str, streamed: StreamedModel | StreamedQuantized, work: Sequence[HeldOutBatch]
    ) -> LastStates:
        """The last states of a model.

        Args:
            model: name of its points to resume from.
        """
        layers = layer_names(streamed.model)
        tokens = len(layers) * sum(batch.input_ids.numel() for batch in work)
        hidden = HiddenStates(self.hidden // 2, self.scratch)
        saved = None if self.pieces is None else SavedStates(self.pieces, model, layers, len(work))
        with Bar(total=tokens, unit=OVER_LAYERS, unit_scale=True, desc=f"evaluation ({model})") as bar:
            return LastStates(streamed, work, hidden, saved, bar.update)

    def opened(self, base: BaseCheckpoint, quantized: Path) -> StreamedModel | StreamedQuantized:
        """The quantized model on the base model's device; a folder in full precision is read as such."""
        if quantization_of(quantized) is None:
            return StreamedModel(quantized, base.device, base.trust_remote_code)
        return StreamedQuantized(quantized, base.device, base.trust_remote_code)

    def of_base(self, key: tuple[str, ...], base: BaseCheckpoint, work: Sequence[HeldOutBatch]) -> LastStates:
        """The last states of the base model, shared by the models of this process; a new key replaces them."""
        if key not in _of_base:
            _of_base.clear()
            _of_base[key] = self.states("base", base.streamed(), work)
        elif self.pieces is not None:  # a run that goes on from here is another process
            _of_base[key].save(self.pieces, "base")
        return _of_base[key]

    def _figures(self, name: str, compute: Callable[[], Figures]) -> Figures:
        return compute() if self.pieces is None else figures(self.pieces, name, compute)


def decisive(quantized: Path, weights: dict[str, str]) -> str:
    """Digest of a model's weights and of its configuration without provenance."""
    config = read_json(quantized / "config.json")
    for part in (config, config.get("quantization_config", {})):
        part.pop("calibration", None)
    return sha256_json([config, weights])
