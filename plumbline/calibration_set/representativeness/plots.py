"""Two small plots that compare a set with production, for Dagster's pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.figure import BLUE, GREY, ORANGE, new_axes, save

PANEL, LENGTHS = "representativeness.png", "lengths.png"
NEAREST, FARTHEST = -2.5, 6.0


def plot_panel(block: Mapping[str, Any], path: Path) -> None:
    """Plot each metric of a block of representativeness.json among random draws.

    0 is the median of the draws, 1 their 95th percentile. The bar reaches from the 5th to the 95th percentile; flagged
    metrics have another colour and shape.
    """
    metrics, flagged = block["metrics"], set(block["flagged"])
    figure, axes = new_axes(6.4, 1.0 + 0.27 * len(metrics))
    for row, (name, metric) in enumerate(metrics.items()):
        low, place = position(metric)
        colour = ORANGE if name in flagged else BLUE
        axes.barh(row, 1 - low, left=low, color=GREY, alpha=0.25, height=0.55)
        beyond = place > FARTHEST
        marker = ">" if beyond else "D" if name in flagged else "o"
        axes.plot([np.clip(place, NEAREST, FARTHEST)], [row], marker, color=colour, markersize=6)
        ratio = "" if metric["ratio"] is None else f"  ({metric['ratio']:.2g}×)"
        axes.text(FARTHEST + 0.35, row, f"{metric['value']:.3g}{ratio}", va="center", fontsize=7.5, color=colour)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(metrics)), [metric["label"] for metric in metrics.values()], fontsize=7.5)
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.set_xlim(NEAREST, FARTHEST + 0.2)
    axes.set_xticks([0, 1, 2, 4, 6], ["50 %", "95 %", "2", "4", "≥ 6"], fontsize=7.5)
    axes.set_xlabel(f"farther from {block['reference']} than random draws of {block['samples']} samples →", fontsize=8)
    axes.tick_params(axis="y", length=0)
    verdict = f"flagged: {len(flagged)} of {len(metrics)}" if flagged else "nothing flagged"
    axes.set_title(f"{verdict}, p = {block['p_value']:.2g}", fontsize=9, loc="left")
    save(figure, path, tight=True)


def position(metric: Mapping[str, Any]) -> tuple[float, float]:
    """The 5th percentile and the value on a scale with the null's median at 0 and its 95th percentile at 1.

    If the median and the 95th percentile are equal, the value is at 0 if it equals them, else beyond the plot's edge.
    """
    null, value = metric["null"], metric["value"]
    width = null["p95"] - null["median"]
    if width <= 1e-9 * max(abs(null["p95"]), 1e-3):
        away = value - null["median"]
        return 1.0, 0.0 if abs(away) <= 1e-9 * max(abs(value), 1e-3) else float(np.sign(away)) * 2 * FARTHEST
    return float((null["p05"] - null["median"]) / width), float((value - null["median"]) / width)


def plot_lengths(chosen: NDArray[np.int64], production: NDArray[np.int64], name: str, path: Path) -> None:
    """Plot the share of tokens in samples up to each length, for the set (n,) and production (m,)."""
    figure, axes = new_axes(6.4, 2.6)
    for lengths, label, colour, style in (
        (production, f"{name} ({len(production)} samples)", GREY, "-"),
        (chosen, f"the set ({len(chosen)} samples)", BLUE, "--"),
    ):
        ascending = np.sort(lengths)
        share = 100 * np.cumsum(ascending) / ascending.sum()
        axes.step(
            np.append(ascending[0], ascending), np.append(0, share), style, where="post", color=colour, label=label
        )
    axes.set_xscale("log")
    ticks = 2 ** np.arange(int(np.log2(max(production.min(), 2))), int(np.log2(max(production.max(), 4))) + 1)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7.5)
    axes.minorticks_off()
    axes.set_xlabel("tokens of the sample", fontsize=8)
    axes.set_ylabel("tokens in samples\nup to that length, %", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path, tight=True)
