"""Evaluation of a quantized model against the base model on held-out documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.artifact import read_json, sha256_files, sha256_json, write_json, write_table
from plumbline.base_model.load import base_model_digest, load_model, load_tokenizer, loaded_model, model_folder
from plumbline.base_model.params import ModelParams
from plumbline.evaluation.base_logits import shared_base_logits
from plumbline.evaluation.divergence import TokenDivergence
from plumbline.evaluation.flips import Item, chosen, encoded, flip_figures, item_table, log_likelihoods, read_items
from plumbline.evaluation.held_out import HeldOut, batches, choose
from plumbline.evaluation.measure import measure
from plumbline.evaluation.metrics import bucket_name, layer_error_figures, layer_errors, subset, summarize
from plumbline.evaluation.params import EvaluationParams
from plumbline.evaluation.plots import DOMAINS, HISTOGRAM, plot_kl_by_domain, plot_kl_histogram
from plumbline.raw_corpus.document import OUT_OF_DOMAIN
from plumbline.tokenized_samples.reader import fingerprint_of

REMEMBERED = 8
"""Measurements in memory. A repeated one recurs after as many evaluations as there are schemes."""
_measured: dict[tuple[str, ...], tuple[TokenDivergence, np.ndarray]] = {}


def build_evaluation(
    params: EvaluationParams, model_params: ModelParams, quantized: Path, samples: Path, out: Path, root: Path
) -> dict[str, Any]:
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
        root: the project, against which a relative `model.name` is read.

    Returns:
        The figures over all tokens and per length, KL per domain, and the counts.

    Raises:
        ValueError: model and samples were tokenized differently, the model was quantized from another base model, its
            weights are not those that calibration.json names, the report split is empty, or a model answers with inf
            or NaN.
    """
    record = read_json(quantized / "calibration.json")
    weights = _checked_weights(quantized, record)
    fingerprint = _checked_fingerprint(quantized, record, samples)
    limits = params.tokens_per_domain, params.samples_per_document
    held_out, elsewhere = choose(samples, *limits), choose(samples, *limits, OUT_OF_DOMAIN)
    folder = model_folder(model_params, root)
    base_digest = _checked_base_model(quantized, record, base_model_digest(folder))
    parts = [part for part in (held_out, elsewhere) if part.sample_ids]
    measured = _measure(params, model_params, folder, base_digest, quantized, weights, parts)
    tokens, sample_of_token = measured[0]
    summary, documents = summarize(tokens, sample_of_token, held_out, params.length_buckets)
    metrics = {
        **summary,
        "weights_bytes": sum((quantized / name).stat().st_size for name in weights),
        "base_weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "weights": weights,
        "base_model": base_digest,
        "calibration_set": record["calibration_set"]["digest"],
        "scheme": record["scheme"],
        "bits": Counter(str(layer["bits"]) for layer in record["layers"].values()),
        "group_sizes": Counter(map(_granularity, record["layers"].values())),
        "fallbacks": record["fallbacks"],
        "layer_errors": layer_errors(record["layers"]),
        "fingerprint": fingerprint,
        "samples_digest": held_out.digest,
        "out_of_domain_digest": elsewhere.digest,
    }
    for others in measured[1:]:
        metrics[OUT_OF_DOMAIN], table = summarize(*others, elsewhere, params.length_buckets)
        write_table(out / f"{OUT_OF_DOMAIN}.parquet", table)
    if params.items is not None:
        answers = _answers(read_items(root / params.items), params, model_params, folder, quantized)
        metrics["flips"] = flip_figures(answers)
        write_table(out / "items.parquet", answers)
    write_json(out / "metrics.json", metrics)
    write_table(out / "documents.parquet", documents)
    plot_kl_histogram(tokens.kl, metrics, out / HISTOGRAM)
    plot_kl_by_domain(metrics["by_domain"], out / DOMAINS)
    kl_per_domain = {f"kl_mean_{domain}": values["kl_mean"] for domain, values in metrics["by_domain"].items()}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    lengths = [{"samples of tokens": bucket_name(bucket), **bucket} for bucket in metrics["by_length"]]
    shown = numbers | kl_per_domain | {"by_length": lengths} | layer_error_figures(metrics["layer_errors"])
    for part in (OUT_OF_DOMAIN, "flips"):
        of_part = {name: value for name, value in metrics.get(part, {}).items() if isinstance(value, int | float)}
        shown |= {f"{part}_{name}": value for name, value in of_part.items()}
    return shown


def _granularity(layer: Mapping[str, Any]) -> str:
    return "per tensor" if layer.get("per_tensor") else str(layer["group_size"] or "per channel")


def _measure(
    params: EvaluationParams,
    model_params: ModelParams,
    base_folder: Path,
    base_digest: str,
    quantized: Path,
    weights: dict[str, str],
    parts: Sequence[HeldOut],
) -> list[tuple[TokenDivergence, np.ndarray]]:
    """Measure both models over the same batches, with a result of `measure` per part.

    A batch has samples of one part only, so that the first part gives the same bits with or without others. Models with
    the same weights are measured once: rounding to nearest gives one model for all calibration sets.
    """
    device, trusted = model_params.device, model_params.trust_remote_code
    conditions = (base_digest, sha256_json([part.digest for part in parts]), params.model_dump_json(), device)
    key = (*conditions, _decisive(quantized, weights))
    ends = list(accumulate(len(part.sample_ids) for part in parts))
    if key not in _measured:
        work = [
            replace(batch, rows=batch.rows + end - len(part.sample_ids))
            for part, end in zip(parts, ends, strict=True)
            for batch in batches(part, params.batch_tokens)
        ]
        base = shared_base_logits(
            conditions, lambda: loaded_model(base_folder, device, trusted), work, params.base_logits_bytes
        )
        while len(_measured) >= REMEMBERED:
            del _measured[next(iter(_measured))]
        _measured[key] = measure(base, load_model(quantized, device, trusted), work)
    tokens, sample_of_token = _measured[key]
    measurements = []
    for part, end in zip(parts, ends, strict=True):
        rows = sample_of_token - (end - len(part.sample_ids))
        inside = (rows >= 0) & (rows < len(part.sample_ids))
        measurements.append((subset(tokens, inside), rows[inside]))
    return measurements


def _answers(
    items: Sequence[Item], params: EvaluationParams, model_params: ModelParams, base_folder: Path, quantized: Path
) -> pa.Table:
    """The `item_table` of the choices of both models."""
    device, trusted = model_params.device, model_params.trust_remote_code
    sequences, counts = encoded(items, load_tokenizer(base_folder, trusted))
    models = loaded_model(base_folder, device, trusted), load_model(quantized, device, trusted)
    likely = [log_likelihoods(model, sequences, counts, params.batch_tokens) for model in models]
    return item_table(items, *(chosen(items, of_model) for of_model in likely))


def _decisive(quantized: Path, weights: dict[str, str]) -> str:
    """Digest of a model's weights and of its configuration without provenance."""
    config = read_json(quantized / "config.json")
    for part in (config, config.get("quantization_config", {})):
        part.pop("calibration", None)
    return sha256_json([config, weights])


def _checked_fingerprint(quantized: Path, record: dict[str, Any], samples: Path) -> str:
    expected, fingerprint = record["fingerprint"], fingerprint_of(samples)
    if fingerprint != expected:
        raise ValueError(
            f"tokenization differs: {quantized.name}/calibration.json was calibrated with fingerprint {expected}, "
            f"{samples.name} has {fingerprint}. Build the calibration sets and quantized models again from these "
            "samples (`plumbline run`), or restore the samples that belong to the model (`dvc checkout`)"
        )
    return str(fingerprint)


def _checked_base_model(quantized: Path, record: dict[str, Any], digest: str) -> str:
    expected = record["base_model"]["digest"]
    if digest != expected:
        raise ValueError(
            f"{quantized.name} was quantized from a base model with digest {expected}; `model:` in params.yaml now has "
            f"{digest}. Quantize again (`plumbline run`), or give `model:` the earlier one"
        )
    return digest


def _checked_weights(quantized: Path, record: dict[str, Any]) -> dict[str, str]:
    """SHA-256 per weight file on disk, checked against the record."""
    digests = sha256_files(quantized, (path.name for path in quantized.glob("*.safetensors")))
    if digests != record["model"]:
        changed = sorted(
            name for name in {*digests, *record["model"]} if digests.get(name) != record["model"].get(name)
        )
        raise ValueError(
            f"{quantized.name}: {', '.join(changed)} is not what calibration.json says was quantized; restore the "
            "folder with `dvc checkout`, or quantize again"
        )
    return digests
