"""Both models over the same samples, token by token, and over the same multiple-choice items."""

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
"""Measurements kept in memory: schemes follow each other choice by choice, so one comes back after as many."""
_measured: dict[tuple[str, ...], tuple[TokenDivergence, np.ndarray]] = {}


def divergences(
    params: EvaluationParams,
    base: BaseCheckpoint,
    base_digest: str,
    quantized: Path,
    weights: dict[str, str],
    parts: Sequence[HeldOut],
) -> list[tuple[TokenDivergence, np.ndarray]]:
    """Both models over the same batches, part by part as `measure` returns it. A batch holds samples of one part, so
    that the first gives the same bits whatever comes behind it.

    Models that compute the same are measured once: rounding to nearest gives one model, whatever it was calibrated on.
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
        _measured[key] = measure(logits, load_model(quantized, base.device, base.trust_remote_code), work)
    tokens, sample_of_token = _measured[key]
    measurements = []
    for part, end in zip(parts, ends, strict=True):
        rows = sample_of_token - (end - len(part.sample_ids))
        inside = (rows >= 0) & (rows < len(part.sample_ids))
        measurements.append((subset(tokens, inside), rows[inside]))
    return measurements


def answers(params: EvaluationParams, base: BaseCheckpoint, quantized: Path) -> pa.Table:
    """What both models choose of the items that `params.items` names, as `item_table` gives it."""
    assert params.items is not None
    items = read_items(base.root / params.items)
    sequences, counts = encoded(items, base.tokenizer())
    models = base.loaded(), load_model(quantized, base.device, base.trust_remote_code)
    likely = [log_likelihoods(model, sequences, counts, params.batch_tokens) for model in models]
    return item_table(items, *(chosen(items, of_model) for of_model in likely))


def _decisive(quantized: Path, weights: dict[str, str]) -> str:
    """Digest of what decides a model's answers: its weights, and its configuration without the provenance in it."""
    config = read_json(quantized / "config.json")
    for part in (config, config.get("quantization_config", {})):
        part.pop("calibration", None)
    return sha256_json([config, weights])
