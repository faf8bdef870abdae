"""Two small plots of an evaluation, for Dagster and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.figure import BLUE, GREY, ORANGE, literal, new_axes, save

SMALLEST_KL = 1e-9
HISTOGRAM, DOMAINS = "kl_histogram.png", "kl_by_domain.png"


def plot_kl_histogram(kl: np.ndarray, figures: Mapping[str, float], path: Path) -> None:
    """Plot the share of tokens by KL (N,) on a logarithmic axis, with mean and 99th percentile.

    Tokens below 1e-9 nats count into the first bar. `figures` gives kl_mean and kl_p99.
    """
    figure, axes = new_axes(6, 2.8)
    exponents = np.log10(np.maximum(kl, SMALLEST_KL))
    low, high = np.floor(exponents.min()), np.ceil(exponents.max() + 1e-12)
    edges = np.logspace(low, max(high, low + 1), 1 + 8 * int(max(high, low + 1) - low))
    counts, _ = np.histogram(np.maximum(kl, SMALLEST_KL), edges)
    axes.stairs(100 * counts / len(kl), edges, fill=True, color=BLUE, alpha=0.75)
    for name, key, style in (("mean", "kl_mean", "-"), ("99th percentile", "kl_p99", "--")):
        axes.axvline(max(figures[key], SMALLEST_KL), color=ORANGE, linestyle=style, label=f"{name} {figures[key]:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("KL(base ‖ quantized) of a token, nats")
    axes.set_ylabel("tokens, %")
    axes.legend(frameon=False, fontsize=8)
    save(figure, path, tight=True)


def plot_kl_by_domain(by_domain: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot the mean KL per token of each domain as a bar; `by_domain` as in metrics.json."""
    figure, axes = new_axes(6, 2.8)
    names = list(by_domain)
    means = [by_domain[name]["kl_mean"] for name in names]
    axes.barh([literal(name) for name in names], means, color=BLUE, alpha=0.75, height=0.6)
    for row, (name, mean) in enumerate(zip(names, means, strict=True)):
        text = f"{mean:.3g}  ({100 * by_domain[name]['top1_agreement']:.1f} % same top token)"
        axes.annotate(text, (mean, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=GREY)
    axes.set_xlim(0, 1.7 * max([*means, SMALLEST_KL]))
    axes.set_xlabel("mean KL(base ‖ quantized), nats per token")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    save(figure, path, tight=True)
