"""The artifact `activation_stats` of one calibration set, collected as `execution:` in params.yaml says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

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
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.inputs import left_out
from plumbline.base_model.load import base_model_digest, loaded_model, model_folder
from plumbline.base_model.params import ModelParams
from plumbline.base_model.streamed import StreamedModel


def build_activation_stats(
    params: StatisticsParams,
    model_params: ModelParams,
    calibration_set: Path,
    out: Path,
    root: Path,
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
    folder = model_folder(model_params, root)
    mode = mode_of(execution, folder, model_params, params)
    name = folder.name if Path(model_params.name).is_absolute() else model_params.name
    largest = _Largest()

    def parts(scratch: Path) -> Iterator[ActivationStats]:
        device, trusted = model_params.device, model_params.trust_remote_code
        if execution.workers > 1 or execution.executor == "ray":
            with _bar(source.tokens) as bar:
                layerwise = mode == "layerwise"
                yield from collected_by_workers(
                    calibration_set, folder, device, trusted, params, layerwise, execution, scratch, bar.update
                )
            return
        known: dict[str, Any] = {"base_model_digest": base_model_digest(folder), "fingerprint": source.fingerprint}
        if mode == "whole":
            model = loaded_model(folder, device, trusted)
            with _bar(source.tokens) as bar:
                yield collect(model, source.samples, params, masks=source.masks, progress=bar.update, **known)
            return
        streamed = StreamedModel(folder, device, trusted)
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
                "base_model": {"name": name, "revision": model_params.revision},
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
        "left_out": left_out(_skeleton(folder, model_params.trust_remote_code), params.ignore),
        **counted(source.masks, len(source.samples), source.tokens),
        "largest_site": largest.site,
        "largest_value": round(largest.extreme.value, 6),
        "largest_sample": largest.extreme.sample_id,
        "mode": mode,
    }


def _skeleton(folder: Path, trust_remote_code: bool) -> nn.Module:
    """The model's modules without weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


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
