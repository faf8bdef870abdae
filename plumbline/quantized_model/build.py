"""quantized_model: quantizes the base model from the statistics of a calibration set; writes a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline.activation_stats import store
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.starved import starved_layers
from plumbline.artifact import read_json, sha256_files, sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.checkpoint_check import unloaded_tensors
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.card import write_card
from plumbline.quantized_model.coverage import coverage_of
from plumbline.quantized_model.export import add_provenance, export
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.kv_cache import cache_record
from plumbline.quantized_model.layer import Quantized
from plumbline.quantized_model.load_check import require_loads
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.record import layer_record

FORMAT = 1
"""Format version of calibration.json."""
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

    Raises:
        ValueError: statistics, calibration set and model do not belong together (the message names both digests), a
            width does not suit the scheme, or the statistics lack what the method reads.
    """
    header, manifest = read_json(stats / store.HEADER), read_manifest(calibration_set)
    _require_same("base model", base.digest(), header["base_model"]["digest"])
    _require_same("calibration set", manifest["digest"], header["calibration_set"])
    _require_same("tokenization fingerprint", manifest["fingerprint"], header["fingerprint"])

    model = base.loaded()
    files_of_stats = sha256_files(stats, (store.HEADER, store.TENSORS))
    statistics = _loaded_stats(stats.resolve(), sha256_json(files_of_stats))
    source = read_source(calibration_set, statistics.settings)
    calibration = (source.samples, source.masks)
    quantized = apply_scheme(model, statistics, scheme, lambda: calibration, _FACTORS, progress=True)
    files = export(model, quantized, scheme, base.folder, out)
    base.write_template(out)
    longest = max((ids for _, ids in source.samples), key=len)
    loads = require_loads(out, model, quantized, scheme, longest, base.trust_remote_code)

    origin = {
        "format": FORMAT,
        "base_model": header["base_model"],
        "fingerprint": manifest["fingerprint"],
        "statistics": {"digest": sha256_json(files_of_stats), "files": files_of_stats},
        "scheme": {"name": scheme_name, **scheme.model_dump(mode="json")},
        "code_version": code_version,
    }
    samples = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "source", "domain"]).to_pylist()
    record = {
        **origin,
        # lets an audit recompute the fingerprint of a copy outside its workspace
        "fingerprint_parts": manifest["fingerprint_parts"],
        "calibration_set": {"digest": manifest["digest"], "choice": manifest["choice"], "samples": samples},
        **_results(quantized, header),
        **({"kv_cache": cache_record(quantized.cache)} if quantized.cache else {}),
        "coverage": coverage_of(model, quantized, scheme).record(),
        "loads": loads,
        "unloaded_tensors": unloaded_tensors(base.folder, model),
    }
    choice = {key: manifest["choice"].get(key) for key in ("name", "strategy", "n", "seed")}
    size = {key: manifest[key] for key in ("digest", "samples", "tokens")}
    add_provenance(out, files, record, {**origin, "calibration_set": {**choice, **size}})
    write_card(out)


def _results(quantized: Quantized, header: Mapping[str, Any]) -> dict[str, Any]:
    """The results per layer for calibration.json.

    Args:
        header: of the statistics.
    """
    layers = quantized.layers
    return {
        "layers": {name: layer_record(layer) for name, layer in layers.items()},
        "fallbacks": {name: layer.fallback for name, layer in layers.items() if layer.fallback},
        "starved": starved_layers(header, layers),
        "notes": quantized.notes,
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
