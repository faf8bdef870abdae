"""The artifact `activation_stats` of one calibration set, collected as `execution:` in params.yaml says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.executor import require_executor
from plumbline.activation_stats.layerwise import layer_by_layer
from plumbline.activation_stats.masks import counted
from plumbline.activation_stats.memory import mode_of
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.sharded import collected_by_workers
from plumbline.activation_stats.sketch import ActivationStats, Extreme, extremes
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.starved import starved_sites
from plumbline.activation_stats.store import save_parts
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.inputs import left_out


def build_activation_stats(
    params: StatisticsParams,
    base: BaseCheckpoint,
    calibration_set: Path,
    out: Path,
    execution: ExecutionParams | None = None,
) -> dict[str, Any]:
    """Write the statistics of a calibration set; the same bytes however they are collected.

    Args:
        execution: None: the default.

    Returns:
        Counts for people: samples, tokens, sites, layers, unreached layers, the largest magnitude with its site and
        sample, the mode it was collected in, sites that saw fewer tokens than they have channels, modules with weights
        that no site reads, and where tokens are masked how many count.

    Raises:
        ValueError: samples.parquet does not hold what manifest.json says, Ray is asked for and not installed, and
            whatever `collect` refuses.
        RuntimeError: a worker died and died again.
    """
    execution = execution or ExecutionParams()
    require_executor(execution)
    source = read_source(calibration_set, params)
    mode = mode_of(execution, base, params)
    largest = _Largest()

    def parts(scratch: Path) -> Iterator[ActivationStats]:
        if execution.workers > 1 or execution.executor == "ray":
            with _bar(source.tokens) as bar:
                layerwise = mode == "layerwise"
                yield from collected_by_workers(
                    calibration_set, base, params, layerwise, execution, scratch, bar.update
                )
            return
        known: dict[str, Any] = {"base_model_digest": base.digest(), "fingerprint": source.fingerprint}
        if mode == "whole":
            model = base.loaded()
            with _bar(source.tokens) as bar:
                yield collect(model, source.samples, params, masks=source.masks, progress=bar.update, **known)
            return
        streamed = base.streamed()
        passes = len(Decoder(streamed.model).names)
        in_memory = int(execution.hidden_gib * 2**30)
        with _bar(source.tokens * passes) as bar:
            yield from layer_by_layer(
                streamed,
                source.samples,
                params,
                scratch,
                masks=source.masks,
                progress=bar.update,
                in_memory=in_memory,
                **known,
            )

    with tempfile.TemporaryDirectory(dir=out) as scratch:
        header = save_parts(
            largest.seen(parts(Path(scratch))),
            out,
            {
                "base_model": {"name": base.name, "revision": base.revision},
                "calibration_set": source.digest,
            },
        )
    return {
        "samples": len(source.samples),
        "tokens": header["tokens"],
        "sites": len(header["sites"]),
        "layers": sum(len(site["members"]) for site in header["sites"].values()),
        "unreached": header["unreached"],
        "starved": starved_sites(header),
        "left_out": left_out(base.skeleton(), params.ignore),
        **counted(source.masks, len(source.samples), source.tokens),
        "largest_site": largest.site,
        "largest_value": round(largest.extreme.value, 6),
        "largest_sample": largest.extreme.sample_id,
        "mode": mode,
    }


class _Largest:
    """Notes the largest magnitude of all parts that pass, at the first site by name where several have it."""

    def __init__(self) -> None:
        self.site = ""
        self.extreme = Extreme(0.0, "", 0, 0)

    def seen(self, parts: Iterable[ActivationStats]) -> Iterator[ActivationStats]:
        for part in parts:
            for name in part.sites:
                found = extremes(part, name)[0]
                if not self.site or (abs(found.value), self.site) > (abs(self.extreme.value), name):
                    self.site, self.extreme = name, found
            yield part


def _bar(total: int) -> Any:
    return tqdm(total=total, unit="token", unit_scale=True, desc="activations", disable=None)
