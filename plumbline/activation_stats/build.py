"""The activation_stats stage: reads a calibration set and the base model; writes stats.safetensors and header.json."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.executor import require_executor
from plumbline.activation_stats.layerwise import layer_by_layer
from plumbline.activation_stats.masks import counted
from plumbline.activation_stats.memory import mode_of
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.sharded import collected_by_workers
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.source import Source, read_source
from plumbline.activation_stats.store import save_parts
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.inputs import left_out
from plumbline.progress import Bar

log = logging.getLogger(__name__)


def build_activation_stats(
    params: StatisticsParams,
    base: BaseCheckpoint,
    calibration_set: Path,
    out: Path,
    execution: ExecutionParams | None = None,
) -> None:
    """Write the statistics of a calibration set; the bytes do not depend on how they are collected.

    Args:
        execution: how statistics are collected; None: the default.

    Raises:
        ValueError: samples.parquet does not match manifest.json, Ray is requested and not installed, or `collect`
            raises it.
        RuntimeError: the worker of a shard died in every attempt.
    """
    execution = execution or ExecutionParams()
    require_executor(execution)
    source = read_source(calibration_set, params)
    provenance = {"base_model": base.origin(), "calibration_set": source.digest}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        parts = _collected(params, base, calibration_set, source, execution, Path(scratch))
        save_parts(parts, out, provenance)
    for tokens, count in counted(source.masks, len(source.samples), source.tokens).items():
        log.info("%s: %d", tokens, count)
    for module, reason in left_out(base.skeleton(), params.ignore).items():
        log.warning("no statistics of %s: %s", module, reason)


def _collected(
    params: StatisticsParams,
    base: BaseCheckpoint,
    calibration_set: Path,
    source: Source,
    execution: ExecutionParams,
    scratch: Path,
) -> Iterator[ActivationStats]:
    """Yield the statistics in parts, collected as `execution` says: by workers, whole, or layer by layer.

    Args:
        source: the content of `calibration_set`.
        scratch: an existing folder that must exist until the last part is yielded.
    """
    mode = mode_of(execution, base, params)
    log.info("mode: %s, workers: %d", mode, execution.workers)
    if execution.workers > 1 or execution.executor == "ray":
        with _bar(source.tokens) as bar:
            layerwise = mode == "layerwise"
            yield from collected_by_workers(calibration_set, base, params, layerwise, execution, scratch, bar.update)
        return
    known: dict[str, Any] = {"base_model_digest": base.digest(), "fingerprint": source.fingerprint}
    if mode == "whole":
        model = base.loaded()
        with _bar(source.tokens) as bar:
            yield collect(model, source.samples, params, masks=source.masks, progress=bar.update, **known)
        return
    streamed = base.streamed()
    passes = len(Decoder(streamed.model).names)
    with _bar(source.tokens * passes) as bar:
        yield from layer_by_layer(
            streamed,
            source.samples,
            params,
            scratch,
            masks=source.masks,
            progress=bar.update,
            in_memory=int(execution.hidden_gib * 2**30),
            **known,
        )


def _bar(total: int) -> Any:
    return Bar(total=total, unit="token", unit_scale=True, desc="activations")
