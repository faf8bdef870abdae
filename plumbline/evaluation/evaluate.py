"""Evaluation of a quantized model against the base model on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from plumbline.artifact import read_json, sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.load import load_model
from plumbline.divergence import TokenDivergence
from plumbline.evaluation.base_logits import shared_base_logits
from plumbline.evaluation.flips import chosen, encoded, item_table, log_likelihoods, read_items
from plumbline.evaluation.held_out import HeldOut, batches
from plumbline.evaluation.measure import measure
from plumbline.evaluation.metrics import subset
from plumbline.evaluation.params import EvaluationParams

REMEMBERED = 8
"""Measurements in memory. A repeated one recurs after as many evaluations as there are schemes."""
_measured: dict[tuple[str, ...], tuple[TokenDivergence, np.ndarray]] = {}


def divergences(
    params: EvaluationParams,
    base: BaseCheckpoint,
    base_digest: str,
    quantized: Path,
    weights: dict[str, str],
    parts: Sequence[HeldOut],
) -> list[tuple[TokenDivergence, np.ndarray]]:
    """Measure both models over the same batches, with a result of `measure` per part.

    A batch has samples of one part only, so that the first part gives the same bits with or without others. Models with
    the same weights are measured once: rounding to nearest gives one model for all calibration sets.
    """
    conditions = (base_digest, sha256_json([part.digest for part in parts]), params.model_dump_json(), base.device)
    key = (*conditions, _decisive(quantized, weights))
    ends = list(accumulate(len(part.sample_ids) for part in parts))
    if key not in _measured:
        work = [
            replace(batch, rows=batch.rows + end - len(part.sample_ids))
            for part, end in zip(parts, ends, strict=True)
            for batch in batches(part, params.batch_tokens)
        ]
        logits = shared_base_logits(conditions, base.loaded, work, params.base_logits_bytes)
        while len(_measured) >= REMEMBERED:
            del _measured[next(iter(_measured))]
        _measured[key] = measure(
            logits, load_model(quantized, base.device, base.trust_remote_code), work, progress=True
        )
    tokens, sample_of_token = _measured[key]
    measurements = []
    for part, end in zip(parts, ends, strict=True):
        rows = sample_of_token - (end - len(part.sample_ids))
        inside = (rows >= 0) & (rows < len(part.sample_ids))
        measurements.append((subset(tokens, inside), rows[inside]))
    return measurements


def answers(params: EvaluationParams, base: BaseCheckpoint, quantized: Path) -> pa.Table:
    """The `item_table` of the choices of both models."""
    assert params.items is not None
    items = read_items(base.root / params.items)
    sequences, counts = encoded(items, base.tokenizer())
    models = base.loaded(), load_model(quantized, base.device, base.trust_remote_code)
    likely = [log_likelihoods(model, sequences, counts, params.batch_tokens) for model in models]
    return item_table(items, *(chosen(items, of_model) for of_model in likely))


def _decisive(quantized: Path, weights: dict[str, str]) -> str:
    """Digest of a model's weights and of its configuration without provenance."""
    config = read_json(quantized / "config.json")
    for part in (config, config.get("quantization_config", {})):
        part.pop("calibration", None)
    return sha256_json([config, weights])
