"""Intervals of an evaluation's figures from its table of documents, by the bootstrap of the calibration report."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from plumbline.calibration_report.bootstrap import bootstrap_ratio, strata_of
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.verdict import FEWEST_DOCUMENTS

Interval = tuple[float, float]
DEFAULTS = ReportParams()
CONFIDENCE = DEFAULTS.confidence


def intervals(documents: pa.Table) -> dict[str, Interval]:
    """Ends of the interval of each figure that is a mean over tokens, with whole documents resampled in their domain.

    Equal to the report's estimate of a model's mean KL, for the report's default parameters.

    Args:
        documents: `documents.parquet` of an evaluation: domain, n_tokens, and sums per document.

    Returns:
        Name of the figure in metrics.json -> (low, high); empty if there are too few documents.
    """
    documents = documents.filter(pa.array(documents["n_tokens"].to_numpy() > 0))
    if documents.num_rows < FEWEST_DOCUMENTS:
        return {}
    column = {name: documents[name].to_numpy().astype(np.float64) for name in ("kl_sum", "agree", "nll_base")}
    quantized = documents["nll_quantized"].to_numpy().astype(np.float64)
    sums = {
        "kl_mean": column["kl_sum"],
        "top1_agreement": column["agree"],
        "perplexity_quantized": quantized,
        "perplexity_base": column["nll_base"],
        "perplexity_ratio": quantized - column["nll_base"],
    }
    strata = strata_of([str(name) for name in documents["domain"].to_pylist()], FEWEST_DOCUMENTS)
    tokens = documents["n_tokens"].to_numpy()
    ratios = bootstrap_ratio(np.stack(list(sums.values())), tokens, strata, DEFAULTS.resamples, DEFAULTS.seed)
    ends = {}
    for name, ratio in zip(sums, ratios, strict=True):
        half = ratio.half_width(CONFIDENCE)
        low, high = ratio.estimate - half, ratio.estimate + half
        if name.startswith("perplexity"):
            low, high = math.exp(min(low, 700.0)), math.exp(min(high, 700.0))
        if math.isfinite(half):
            ends[name] = low, high
    return ends


def intervals_by_domain(documents: pa.Table) -> dict[str, dict[str, Interval]]:
    """`intervals` of every domain; a domain with too few documents has none."""
    names = documents["domain"].to_numpy(zero_copy_only=False)
    return {str(name): intervals(documents.filter(pa.array(names == name))) for name in sorted(set(names))}
