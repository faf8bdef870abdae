"""Figures of an evaluation from measurements per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.base_model.inputs import EXPERT
from plumbline.divergence import TokenDivergence
from plumbline.evaluation.held_out import HeldOut

QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999}


def figures(tokens: TokenDivergence) -> dict[str, float | int]:
    """Figures over tokens: KL in nats per token, perplexity = exp(mean nll), agreement as a share of 1,
    rms_delta_p = sqrt(mean (p_quantized(target) - p_base(target))²) as a share of 1.

    The panel of llama.cpp's `llama-perplexity --kl-divergence` (ggml-org/llama.cpp#5076), which shows the last two in
    percent. Quantiles interpolate linearly between order statistics (numpy's default).

    Raises:
        ValueError: there is no token.
    """
    if not len(tokens.kl):
        raise ValueError("no token to evaluate: every sample has a single token, which predicts none")
    quantiles = np.quantile(tokens.kl, list(QUANTILES.values()))
    nll_base, nll_quantized = float(tokens.nll_base.mean()), float(tokens.nll_quantized.mean())
    return {
        "tokens": len(tokens.kl),
        "kl_mean": float(tokens.kl.mean()),
        **{f"kl_{name}": float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        "kl_max": float(tokens.kl.max()),
        "perplexity_base": _exp(nll_base),
        "perplexity_quantized": _exp(nll_quantized),
        "perplexity_ratio": _exp(nll_quantized - nll_base),
        "top1_agreement": float(tokens.agree.mean()),
        "rms_delta_p": math.sqrt(float((tokens.delta_p**2).mean())),
    }


def summarize(
    tokens: TokenDivergence, sample_of_token: np.ndarray, held_out: HeldOut, ends: Sequence[int]
) -> tuple[dict[str, Any], pa.Table]:
    """The part of metrics.json on some samples, and their `document_table`, in order of domain and document.

    Args:
        tokens: N predicted tokens.
        sample_of_token: int64 (N,), indices into the samples of `held_out`.
        ends: of the buckets of sample length (`by_length`).
    """
    pairs = list(zip(held_out.domains, held_out.doc_ids, strict=True))
    documents = sorted(set(pairs))
    row = {document: index for index, document in enumerate(documents)}
    of_sample = np.array([row[pair] for pair in pairs])
    lengths = np.array([len(ids) for ids in held_out.tokens])
    summary = {
        **figures(tokens),
        "documents": len(documents),
        "samples": len(held_out.sample_ids),
        "by_domain": by_domain(tokens, np.array(held_out.domains)[sample_of_token]),
        "by_length": by_length(tokens, lengths[sample_of_token], ends),
        "held_out": held_out.choice,
    }
    ids = [(doc_id, domain) for domain, doc_id in documents]
    return summary, document_table(tokens, of_sample[sample_of_token], ids)


def document_table(
    tokens: TokenDivergence, document_of_token: np.ndarray, documents: Sequence[tuple[str, str]]
) -> pa.Table:
    """Sums per document over its predicted tokens, all its windows together.

    Args:
        tokens: N predicted tokens.
        document_of_token: int64 (N,), indices into `documents`.
        documents: (doc_id, domain), the order of the rows.

    Returns:
        doc_id, domain, n_tokens (predicted tokens), nll_base, nll_quantized, kl_sum (sums in nats), agree (tokens),
        delta_p_squared (sum of (p_quantized(target) - p_base(target))²).
    """

    def sums(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(document_of_token, weights=values, minlength=len(documents))

    return pa.table(
        {
            "doc_id": [doc_id for doc_id, _ in documents],
            "domain": [domain for _, domain in documents],
            "n_tokens": sums(None).astype(np.int64),
            "nll_base": sums(tokens.nll_base),
            "nll_quantized": sums(tokens.nll_quantized),
            "kl_sum": sums(tokens.kl),
            "agree": sums(tokens.agree).astype(np.int64),
            "delta_p_squared": sums(tokens.delta_p**2),
        }
    )


def subset(tokens: TokenDivergence, mask: np.ndarray) -> TokenDivergence:
    """The tokens where the boolean `mask` (N,) holds."""
    return TokenDivergence(tokens.kl[mask], tokens.nll_base[mask], tokens.nll_quantized[mask], tokens.agree[mask])


def by_domain(tokens: TokenDivergence, domain_of_token: np.ndarray) -> dict[str, dict[str, Any]]:
    """`figures` per domain, in order of name; a domain without a predicted token is left out."""
    return {str(name): dict(figures(subset(tokens, domain_of_token == name))) for name in np.unique(domain_of_token)}


def by_length(tokens: TokenDivergence, length_of_token: np.ndarray, ends: Sequence[int]) -> list[dict[str, Any]]:
    """`figures` per bucket of sample length, shortest first; a bucket without a predicted token is left out.

    Args:
        tokens: N predicted tokens.
        length_of_token: int (N,): length in tokens of the sample that each belongs to.
        ends: longest sample of every bucket, ascending; longer samples make a bucket of their own.

    Returns:
        Figures with `shortest` and `longest`, the bucket's bounds; `longest` is None if it has none.
    """
    bucket = np.searchsorted(np.asarray(ends), length_of_token)
    bounds = list(zip([1, *(end + 1 for end in ends)], [*ends, None], strict=True))
    return [
        {"shortest": bounds[index][0], "longest": bounds[index][1], **figures(subset(tokens, bucket == index))}
        for index in np.unique(bucket)
    ]


def layer_errors(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Relative squared error of every layer's output, tr(dW S dW^T) / tr(W S W^T), from the calibration set's Hessian.

    It is the error of the weights on the set itself, and serves to compare the layers of a model; sets are compared on
    held-out documents. Layers whose site has no Hessian are left out. The experts of a layer are one entry, their mean.

    Args:
        layers: of calibration.json.
    """
    errors: dict[str, list[float]] = {}
    for name, layer in layers.items():
        if "relative_error" in layer:
            errors.setdefault(EXPERT.sub("experts.all", name), []).append(layer["relative_error"])
    return {name: fmean(values) for name, values in errors.items()}


def _exp(nll: float) -> float:
    return math.exp(min(nll, 700.0))  # JSON has no infinity
