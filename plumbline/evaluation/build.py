"""evaluation: reads a quantized model, the base model and the report split; writes metrics.json, tables and plots."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plumbline.activation_stats.params import ExecutionParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.artifact import read_json, sha256_file, sha256_json, write_json, write_table
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.device import torch_device
from plumbline.evaluation.checks import checked_base_model, checked_fingerprint, checked_weights
from plumbline.evaluation.evaluate import answers, decisive, divergences
from plumbline.evaluation.flips import flip_figures
from plumbline.evaluation.held_out import choose
from plumbline.evaluation.layerwise_mode import layerwise_of
from plumbline.evaluation.metrics import layer_errors, summarize
from plumbline.evaluation.params import EvaluationParams
from plumbline.evaluation.plots import DOMAINS, HISTOGRAM, plot_kl_by_domain, plot_kl_histogram
from plumbline.quantized_model.record import granularity
from plumbline.quantized_model.share import bits_per_weight
from plumbline.raw_corpus.document import OUT_OF_DOMAIN

PARTS = ".parts"
"""Folder in the scratch folder of what a later run would go on from."""


def build_evaluation(
    params: EvaluationParams,
    base: BaseCheckpoint,
    quantized: Path,
    samples: Path,
    out: Path,
    execution: ExecutionParams | None = None,
    code_version: str = "",
    resume: Path | None = None,
) -> None:
    """Compare `quantized` with the base model, token by token, on the report split, and beside it on what
    `corpus.out_of_domain` gave, where params.yaml has that.

    KL(base || quantized) in nats per predicted token, perplexity, top-1 agreement and change of the true token's
    probability, over all tokens, per domain and per bucket of sample length.
    The quantized model is loaded as anyone would load it. (Not with `dequantize=True`: that drops `input_scale`, and
    the quantization of activations would go unmeasured.)

    Args:
        quantized: a folder written by quantized_model.
        samples: the folder tokenized_samples.
        out: gets metrics.json, documents.parquet, kl_histogram.png, kl_by_domain.png; with out-of-domain texts,
            out_of_domain.parquet, too, and their figures in metrics.json under `out_of_domain`; with multiple-choice
            items, items.parquet, and figures under `flips`.
        execution: whether both models are in memory or one decoder layer at a time; it changes no byte. None: the
            default.
        code_version: of this step.
        resume: where the hidden states of models wait that are run layer by layer; a later call with the same inputs
            goes on from there. The caller removes it once the artifact is where it belongs. None: a folder in `out`,
            which is removed.

    Raises:
        ValueError: model and samples were tokenized differently, the model was quantized from another base model, its
            weights are not those that calibration.json names, the report split is empty, or a model answers with inf
            or NaN.
    """
    record = read_json(quantized / "calibration.json")
    weights = checked_weights(quantized, record)
    fingerprint = checked_fingerprint(quantized, record, samples)
    limits = params.tokens_per_domain, params.samples_per_document
    held_out, elsewhere = choose(samples, *limits), choose(samples, *limits, OUT_OF_DOMAIN)
    base_digest = checked_base_model(quantized, record, base.digest())
    parts = [part for part in (held_out, elsewhere) if part.sample_ids]
    evaluated = sum(len(ids) for part in parts for ids in part.tokens)
    with TemporaryDirectory(dir=out) as scratch:
        layerwise = layerwise_of(execution or ExecutionParams(), params, evaluated, base, Path(scratch))
        if layerwise is not None:
            inputs = [base_digest, str(torch_device(base.device)), decisive(quantized, weights)]
            inputs += [*(part.digest for part in parts), params.model_dump_json(), _items(params, base), code_version]
            pieces = Pieces(resume or Path(scratch) / PARTS, sha256_json(inputs))
            layerwise = replace(layerwise, pieces=pieces)
        measured = divergences(params, base, base_digest, quantized, weights, parts, layerwise)
        chosen = None if params.items is None else answers(params, base, quantized, layerwise)
    tokens, sample_of_token = measured[0]
    figures, documents = summarize(tokens, sample_of_token, held_out, params.length_buckets)
    weight_files = [name for name in weights if name.endswith(".safetensors")]
    metrics = {
        **figures,
        "weights_bytes": sum((quantized / name).stat().st_size for name in weight_files),
        "bits_per_weight": bits_per_weight(quantized, weight_files, record["coverage"]),
        "base_weights_bytes": sum(path.stat().st_size for path in base.folder.glob("*.safetensors")),
        **_origin(record),
        "weights": weights,
        "base_model": base_digest,
        "fingerprint": fingerprint,
        "samples_digest": held_out.digest,
        "out_of_domain_digest": elsewhere.digest,
    }
    for others in measured[1:]:
        metrics[OUT_OF_DOMAIN], table = summarize(*others, elsewhere, params.length_buckets)
        write_table(out / f"{OUT_OF_DOMAIN}.parquet", table)
    if chosen is not None:
        metrics["flips"] = flip_figures(chosen)
        write_table(out / "items.parquet", chosen)
    write_json(out / "metrics.json", metrics)
    write_table(out / "documents.parquet", documents)
    plot_kl_histogram(tokens.kl, metrics, out / HISTOGRAM)
    plot_kl_by_domain(metrics["by_domain"], out / DOMAINS)


def _items(params: EvaluationParams, base: BaseCheckpoint) -> str:
    """Digest of the multiple-choice items; empty: there are none."""
    return "" if params.items is None else sha256_file(base.root / params.items)


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json takes from calibration.json."""
    layers = record["layers"]
    return {
        "calibration_set": record["calibration_set"]["digest"],
        "scheme": record["scheme"],
        "bits": Counter(str(layer["bits"]) for layer in layers.values()),
        "group_sizes": Counter(map(granularity, layers.values())),
        "fallbacks": record["fallbacks"],
        "share": record["coverage"]["share"],
        "share_of_all": record["coverage"]["share_of_all"],
        "left": Counter(record["coverage"]["left"].values()),
        "layer_errors": layer_errors(layers),
    }
