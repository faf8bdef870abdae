"""From stored statistics to a quantized model on disk, without a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open

from plumbline.activation_stats import store
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.starved import starved_layers
from plumbline.artifact import read_json, sha256_files, sha256_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.quantized_model.export import add_provenance, export
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.full_precision import experts_in_full_precision
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagate import propagated
from plumbline.quantized_model.quantize import quantize_model

FORMAT = 1
"""Of calibration.json."""
_FACTORS = Factors()
"""Of the Hessians of `_loaded_stats`, so that the schemes of one run share them, too."""


def build_quantized_model(
    scheme_name: str,
    scheme: SchemeParams,
    base: BaseCheckpoint,
    stats: Path,
    calibration_set: Path,
    out: Path,
    code_version: str = "",
) -> dict[str, Any]:
    """Quantize the base model under a scheme and write a folder that transformers and vLLM load.

    Args:
        scheme_name: its name in params.yaml.
        scheme: its parameters.
        base: the base model.
        stats: an activation_stats artifact of that model over that calibration set.
        calibration_set: a calibration_set artifact.
        out: an existing empty folder.
        code_version: of this step, written into the model.

    Returns:
        Summary: sizes, bits per weight, layer errors, fallbacks, a row per layer.

    Raises:
        ValueError: statistics, calibration set and model do not belong together (both sides are named), a width does
            not suit the scheme, or the statistics lack what the method reads.
    """
    header, manifest = read_json(stats / store.HEADER), read_manifest(calibration_set)
    _require_same("base model", base.digest(), header["base_model"]["digest"])
    _require_same("calibration set", manifest["digest"], header["calibration_set"])
    _require_same("tokenization fingerprint", manifest["fingerprint"], header["fingerprint"])
    samples = read_calibration_set(calibration_set, ["sample_id", "doc_ids", "source", "domain"]).to_pylist()

    model = base.loaded()
    files_of_stats = sha256_files(stats, (store.HEADER, store.TENSORS))
    statistics = _loaded_stats(stats.resolve(), sha256_json(files_of_stats))
    if scheme.propagate == "quantized":
        source = read_source(calibration_set, statistics.settings)
        quantized = propagated(model, source.samples, scheme, statistics, source.masks)
    else:
        quantized = quantize_model(model, statistics, scheme, _FACTORS)
    layers = quantized.layers
    files = export(model, quantized, scheme, base.folder, out)

    origin = {
        "format": FORMAT,
        "base_model": header["base_model"],
        "fingerprint": manifest["fingerprint"],
        "statistics": {"digest": sha256_json(files_of_stats), "files": files_of_stats},
        "scheme": {"name": scheme_name, **scheme.model_dump(mode="json")},
        "code_version": code_version,
    }
    fallbacks = {name: layer.fallback for name, layer in layers.items() if layer.fallback}
    record = {
        **origin,
        # what the fingerprint is made of, so that a copy far from its workspace can be checked, too
        "fingerprint_parts": manifest["fingerprint_parts"],
        "calibration_set": {"digest": manifest["digest"], "choice": manifest["choice"], "samples": samples},
        "layers": {name: _layer_record(layer) for name, layer in layers.items()},
        "fallbacks": fallbacks,
        "starved": starved_layers(header, layers),
        "experts_in_full_precision": experts_in_full_precision(model),
        "notes": quantized.notes,
    }
    choice = {key: manifest["choice"].get(key) for key in ("name", "strategy", "n", "seed")}
    size = {key: manifest[key] for key in ("digest", "samples", "tokens")}
    add_provenance(out, files, record, {**origin, "calibration_set": {**choice, **size}})
    told = {key: record[key] for key in ("starved", "experts_in_full_precision") if record[key]}
    return _summary(base.folder, out, files, layers, fallbacks, quantized.notes) | told


@lru_cache(maxsize=1)
def _loaded_stats(stats: Path, digest: str) -> ActivationStats:
    """The last statistics stay loaded, so that the schemes of one run share them; `digest` tells a new version."""
    return store.load(stats)


def _require_same(what: str, given: str, collected: str) -> None:
    if given != collected:
        raise ValueError(
            f"{what}: {given[:16]} is to be used here, but the statistics were collected with {collected[:16]}; run "
            "activation_stats again"
        )


def _layer_record(layer: Layer) -> dict[str, Any]:
    record: dict[str, Any] = {"bits": layer.weight.bits, "group_size": layer.group_size}
    extra = {
        "per_tensor": layer.weight.grid.per_tensor or None,
        "zero_points": layer.weight.zero_point is not None or None,
        "damping": layer.damping,
        "dead_channels": layer.dead or None,
        "fallback": layer.fallback,
        "relative_error": None if layer.error is None else float(f"{layer.error:.6g}"),
    }
    return record | {key: value for key, value in extra.items() if value is not None}


def _transform_summary(notes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Without the figures of every site, which stand in calibration.json."""
    if "transform" not in notes:
        return None
    facts = notes["transform"]
    return {key: value for key, value in facts.items() if not isinstance(value, dict)} | {
        "unfolded": dict(Counter(facts["unfolded"].values()))
    }


def granularity(layer: Layer) -> str:
    """How many weights share a scale, in words or as a number."""
    return "per tensor" if layer.weight.grid.per_tensor else str(layer.group_size or "per channel")


def _summary(
    base: Path,
    out: Path,
    files: list[str],
    layers: Mapping[str, Layer],
    fallbacks: dict[str, str],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    stored = 0
    for file in files:
        with safe_open(out / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                layer, _, what = key.rpartition(".")
                if layer in layers and what != "bias":
                    tensor = tensors.get_tensor(key)
                    stored += tensor.numel() * tensor.element_size()
    errors = {name: layer.error for name, layer in layers.items() if layer.error is not None}
    worst = max(errors, key=errors.__getitem__, default=None)
    return {
        "bytes": sum((out / file).stat().st_size for file in files),
        "base_model_bytes": sum(path.stat().st_size for path in base.glob("*.safetensors")),
        "bits_per_weight": round(8 * stored / sum(layer.weight.codes.numel() for layer in layers.values()), 4),
        "quantized_layers": len(layers),
        "bits": sorted({layer.weight.bits for layer in layers.values()}),
        "group_sizes": sorted({granularity(layer) for layer in layers.values()}),
        "zero_points": any(layer.weight.zero_point is not None for layer in layers.values()),
        "mean_layer_error": fmean(errors.values()) if errors else None,
        "max_layer_error": errors[worst] if worst else None,
        "worst_layer": worst,
        "fallbacks": fallbacks,
        "remarks": notes.get("remarks"),
        "mixed": {key: value for key, value in notes.get("mixed", {}).items() if key != "bits"},
        "transform": _transform_summary(notes),
        "propagate": notes.get("propagate"),
        "layers": [
            {
                "layer": name,
                "bits": layer.weight.bits,
                "group_size": granularity(layer),
                "relative_error": errors.get(name, ""),
                "damping": layer.damping if layer.damping is not None else "",
                "dead_channels": layer.dead,
                "fallback": layer.fallback or "",
            }
            for name, layer in layers.items()
        ],
    }
