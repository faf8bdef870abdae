"""The activation_stats stage: reads a calibration set and the base model; writes stats.safetensors and header.json."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.layerwise import Collection, CollectionInputs
from plumbline.activation_stats.masks import counted
from plumbline.activation_stats.memory import collectors, mode_of
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import collect_pieces
from plumbline.activation_stats.sharded import collected_by_workers
from plumbline.activation_stats.source import Source, read_source
from plumbline.activation_stats.store import save, save_parts, save_pieces
from plumbline.artifact import sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.device import torch_device
from plumbline.base_model.inputs import left_out
from plumbline.execution.share_out import require_executor, shares_out
from plumbline.progress import OVER_LAYERS, Bar

log = logging.getLogger(__name__)
PARTS = ".parts"
"""Folder in `out` of the parts of statistics."""


def build_activation_stats(
    params: StatisticsParams,
    base: BaseCheckpoint,
    calibration_set: Path,
    out: Path,
    execution: ExecutionParams | None = None,
    code_version: str = "",
    resume: Path | None = None,
) -> None:
    """Write the statistics of a calibration set; the bytes do not depend on how they are collected.

    Args:
        execution: how statistics are collected; None: the default.
        code_version: of this step.
        resume: where the parts of statistics wait that are collected layer by layer or by workers; a later call with
            the same inputs goes on from the parts that are there. The caller removes it once the artifact is where it
            belongs. None: a folder in `out`, which is removed.

    Raises:
        ValueError: samples.parquet does not match manifest.json, Ray is requested and not installed, or `collect`
            raises it.
        RuntimeError: the worker of a shard died in every attempt.
    """
    execution = execution or ExecutionParams()
    require_executor(execution)
    source = read_source(calibration_set, params)
    provenance = {"base_model": base.origin(), "calibration_set": source.digest}
    device = str(torch_device(base.device))
    key = sha256_json([base.digest(), device, source.content, params.model_dump(mode="json"), code_version])
    pieces = Pieces(resume or out / PARTS, key)
    _collect(params, base, calibration_set, source, execution, pieces, out, provenance)
    if resume is None:
        shutil.rmtree(pieces.folder, ignore_errors=True)
    for tokens, count in counted(source.masks, len(source.samples), source.tokens).items():
        log.info("%s: %d", tokens, count)
    for module, reason in left_out(base.skeleton(), params.ignore).items():
        log.warning("no statistics of %s: %s", module, reason)


def _collect(
    params: StatisticsParams,
    base: BaseCheckpoint,
    calibration_set: Path,
    source: Source,
    execution: ExecutionParams,
    pieces: Pieces,
    out: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Write the statistics, collected as `execution` says: by workers, whole, or layer by layer.

    Args:
        source: the content of `calibration_set`.
    """
    mode = mode_of(execution, base, params)
    log.info("mode: %s, workers: %d", mode, collectors(execution, params))
    if shares_out(execution) and params.shards > 1:
        with _bar(source.tokens) as bar:
            layerwise = mode == "layerwise"
            pieces.claim()
            shards = collected_by_workers(calibration_set, base, params, layerwise, execution, pieces, bar.update)
            save_parts(shards, out, provenance)
        return
    known: dict[str, Any] = {
        "base_model_digest": base.digest(),
        "fingerprint": source.fingerprint,
        "masks": source.masks,
    }
    if mode == "whole":
        model = base.loaded()
        with _bar(source.tokens) as bar:
            stats = collect(model, source.samples, params, progress=bar.update, **known)
        save(stats, out, provenance)
        return
    collection = Collection(base.streamed(), CollectionInputs(source.samples, params, **known))
    with _bar(source.tokens * len(collection.names), OVER_LAYERS) as bar:
        collection.progress = bar.update
        collect_pieces(collection, pieces, out, int(execution.hidden_gib * 2**30))
    save_pieces(pieces, collection.names, out, provenance)


def _bar(total: int, unit: str = "tokens") -> Any:
    return Bar(total=total, unit=unit, unit_scale=True, desc="activations")
