"""quantized_model: quantizes the base model from the statistics of a calibration set; writes a Hugging Face folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.activation_stats import store
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.source import Source, read_source
from plumbline.activation_stats.starved import starved_layers
from plumbline.activation_stats.stored import StoredStatistics
from plumbline.artifact import read_json, sha256_files, sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.checkpoint_check import unloaded_tensors
from plumbline.base_model.device import torch_device
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.card import write_card
from plumbline.quantized_model.coverage import coverage_of
from plumbline.quantized_model.export import add_provenance, export
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.kv_cache import cache_record
from plumbline.quantized_model.layerwise import quantized_layer_by_layer
from plumbline.quantized_model.layerwise_mode import mode_of
from plumbline.quantized_model.layerwise_propagate import SetAgain
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.outcome import Outcome, outcome_of
from plumbline.quantized_model.params import SchemeParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from plumbline.base_model.streamed import StreamedModel

log = logging.getLogger(__name__)
FORMAT = 1
"""Format version of calibration.json."""
PARTS = ".parts"
"""Folder of the parts of a model that is made layer by layer."""
_FACTORS = Factors()
"""Factors of the Hessians of `_loaded_stats`, shared by the schemes of one run."""


def build_quantized_model(
    scheme_name: str,
    scheme: SchemeParams,
    base: BaseCheckpoint,
    stats: Path,
    calibration_set: Path,
    out: Path,
    code_version: str = "",
    execution: ExecutionParams | None = None,
    resume: Path | None = None,
) -> None:
    """Quantize the base model under a scheme and write a folder that transformers and vLLM load.

    Args:
        scheme_name: its name in params.yaml.
        scheme: its parameters.
        base: the base model.
        stats: an activation_stats artifact of that model over that calibration set.
        calibration_set: a calibration_set artifact.
        out: an existing empty folder.
        code_version: of this step, written into the model.
        execution: whether the whole model is in memory or one decoder layer at a time; it changes no byte. None: the
            default.
        resume: where the parts of a model wait that is made layer by layer; a later call with the same inputs goes on
            from the parts that are there. None: a folder in `out`.

    Raises:
        ValueError: statistics, calibration set and model do not belong together (the message names both digests), a
            width does not suit the scheme, or the statistics lack what the method reads.
    """
    header, manifest = read_json(stats / store.HEADER), read_manifest(calibration_set)
    _require_same("base model", base.digest(), header["base_model"]["digest"])
    _require_same("calibration set", manifest["digest"], header["calibration_set"])
    _require_same("tokenization fingerprint", manifest["fingerprint"], header["fingerprint"])

    files_of_stats = sha256_files(stats, (store.HEADER, store.TENSORS))
    digest_of_stats = sha256_json(files_of_stats)
    source = read_source(calibration_set, StatisticsParams.model_validate(header["settings"]))
    if mode_of(execution or ExecutionParams(), base, scheme, header) == "whole":
        model = base.loaded()
        outcome = _whole(model, scheme, base, _loaded_stats(stats.resolve(), digest_of_stats), source, out)
    else:
        inputs: list[Any] = [base.digest(), str(torch_device(base.device)), digest_of_stats, source.content]
        inputs += [scheme.model_dump(mode="json"), code_version]
        streamed = base.streamed()
        model = streamed.model
        hidden = int((execution or ExecutionParams()).hidden_gib * 2**30)
        again = SetAgain(source.samples, source.masks, hidden, out)
        pieces = Pieces(resume or out / PARTS, sha256_json(inputs))
        outcome = _layer_by_layer(streamed, scheme, base, stats, source, out, pieces, again)
        if resume is None:
            shutil.rmtree(pieces.folder)
    base.write_template(out)

    origin = {
        "format": FORMAT,
        "base_model": header["base_model"],
        "fingerprint": manifest["fingerprint"],
        "statistics": {"digest": digest_of_stats, "files": files_of_stats},
        "scheme": {"name": scheme_name, **scheme.model_dump(mode="json")},
        "code_version": code_version,
    }
    samples = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "source", "domain"]).to_pylist()
    record = {
        **origin,
        # lets an audit recompute the fingerprint of a copy outside its workspace
        "fingerprint_parts": manifest["fingerprint_parts"],
        "calibration_set": {"digest": manifest["digest"], "choice": manifest["choice"], "samples": samples},
        **_results(outcome, header),
        **({"kv_cache": cache_record(outcome.cache)} if outcome.cache else {}),
        "coverage": coverage_of(model, outcome.layers, scheme, outcome.left, outcome.cache).record(),
        "loads": outcome.loads,
        "unloaded_tensors": unloaded_tensors(base.folder, model),
    }
    choice = {key: manifest["choice"].get(key) for key in ("name", "strategy", "n", "seed")}
    size = {key: manifest[key] for key in ("digest", "samples", "tokens")}
    add_provenance(out, outcome.files, record, {**origin, "calibration_set": {**choice, **size}})
    write_card(out)


def _whole(
    model: PreTrainedModel,
    scheme: SchemeParams,
    base: BaseCheckpoint,
    stats: ActivationStats,
    source: Source,
    out: Path,
) -> Outcome:
    """Quantize a model in memory and write its folder."""
    calibration = (source.samples, source.masks)
    quantized = apply_scheme(model, stats, scheme, lambda: calibration, _FACTORS, progress=True)
    files = export(model, quantized, scheme, base.folder, out)
    loads = require_loads(out, model, quantized, scheme, source.longest, base.trust_remote_code)
    return outcome_of(quantized, files, loads)


def _layer_by_layer(
    streamed: StreamedModel,
    scheme: SchemeParams,
    base: BaseCheckpoint,
    stats: Path,
    source: Source,
    out: Path,
    pieces: Pieces,
    again: SetAgain,
) -> Outcome:
    """Quantize a model on disk and write its folder."""
    done = partial(log.info, "on disk: %s")
    inputs = scheme, out, pieces, source.longest, again, base.trust_remote_code, done
    return quantized_layer_by_layer(streamed, StoredStatistics(stats), *inputs)


def _results(outcome: Outcome, header: Mapping[str, Any]) -> dict[str, Any]:
    """The results per layer for calibration.json.

    Args:
        header: of the statistics.
    """
    layers = outcome.layers
    return {
        "layers": layers,
        "fallbacks": {name: layer["fallback"] for name, layer in layers.items() if "fallback" in layer},
        "starved": starved_layers(header, layers),
        "notes": outcome.notes,
    }


@lru_cache(maxsize=1)
def _loaded_stats(stats: Path, digest: str) -> ActivationStats:
    """Load statistics; the last ones are cached for the schemes of one run, `digest` invalidates the cache."""
    return store.load(stats)


def _require_same(name: str, current: str, collected: str) -> None:
    if current != collected:
        raise ValueError(
            f"{name}: {current[:16]} is used here, but the statistics were collected with {collected[:16]}; run "
            "activation_stats again"
        )
