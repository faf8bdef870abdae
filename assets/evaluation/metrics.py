"""Figures of an evaluation from what was measured per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from assets.evaluation.divergence import TokenDivergence

QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


def figures(tokens: TokenDivergence) -> dict[str, float | int]:
    """Figures over all tokens given: KL in nats per token, perplexity = exp(mean nll), agreement as a share of 1.

    Quantiles interpolate linearly between order statistics (numpy's default).

    Raises:
        ValueError: there is no token.
    """
    if not len(tokens.kl):
        raise ValueError(
            "no token to evaluate: every sample of the report split has a single token, which predicts none"
        )
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
    }


def document_table(
    tokens: TokenDivergence, document_of_token: np.ndarray, documents: Sequence[tuple[str, str]]
) -> pa.Table:
    """Sums per document over its predicted tokens, all its windows together.

    Args:
        tokens: N predicted tokens.
        document_of_token: int64 (N,), indices into `documents`.
        documents: (doc_id, domain), the order of the rows.

    Returns:
        doc_id, domain, n_tokens (predicted tokens), nll_base, nll_quantized, kl_sum (sums in nats), agree (tokens).
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
        }
    )


def subset(tokens: TokenDivergence, mask: np.ndarray) -> TokenDivergence:
    """The tokens where the boolean `mask` (N,) holds."""
    return TokenDivergence(tokens.kl[mask], tokens.nll_base[mask], tokens.nll_quantized[mask], tokens.agree[mask])


def by_domain(tokens: TokenDivergence, domain_of_token: np.ndarray) -> dict[str, dict[str, Any]]:
    """`figures` per domain, in order of name; a domain without a predicted token is left out."""
    return {str(name): dict(figures(subset(tokens, domain_of_token == name))) for name in np.unique(domain_of_token)}


def _exp(nll: float) -> float:
    return math.exp(min(nll, 700.0))  # a model that is broken beyond e^700 still has a figure, and JSON has no infinity
