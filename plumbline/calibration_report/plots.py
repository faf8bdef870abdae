"""Plots of a comparison, for Dagster, MLflow and slides; studies use them, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from plumbline.figure import BLUE, GREY, ORANGE, literal, save

DIFFERENCE, DOMAINS = "difference.png", "by_domain.png"
_BETTER_TO_WORSE = LinearSegmentedColormap.from_list("better to worse", [BLUE, "#ffffff", ORANGE])


@dataclass(frozen=True)
class Mark:
    """A difference in a forest plot."""

    y: float
    difference: float | None
    """Relative; None: nothing to draw."""
    low: float | None
    high: float | None
    verdict: str
    draws: Sequence[float] = ()


def plot_forest(panels: Mapping[str, Sequence[Mark]], rows: Mapping[float, str], baseline: str, path: Path) -> None:
    """Plot relative differences of mean KL from the baseline with intervals, a panel per scheme on one axis.

    Args:
        panels: by their title.
        rows: label at each y.
    """
    across = len(panels)
    height = 0.9 + 0.21 * len(rows)
    figure = Figure(figsize=(1.6 + 2.5 * across, height), dpi=80, layout="constrained")
    drawn = figure.subplots(1, across, sharex=True, sharey=True, squeeze=False)[0]
    for (title, marks), axes in zip(panels.items(), drawn, strict=True):
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        for mark in marks:
            if mark.difference is None:
                continue
            colour = {"better": BLUE, "worse": ORANGE}.get(mark.verdict, GREY)
            dots = [100 * value for value in mark.draws]
            axes.plot(dots, [mark.y] * len(dots), "o", color=colour, alpha=0.25, markersize=2.5, markeredgewidth=0)
            if mark.low is not None and mark.high is not None:
                axes.plot([100 * mark.low, 100 * mark.high], [mark.y] * 2, color=colour, linewidth=2)
            face = colour if mark.verdict in ("better", "worse") else "white"
            axes.plot(100 * mark.difference, mark.y, "o", color=colour, markerfacecolor=face, markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(f"KL against {baseline}, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    drawn[0].set_yticks(list(rows), list(rows.values()))
    drawn[0].set_ylim(min(rows) - 0.7, max(rows) + 0.7)
    save(figure, path)


def plot_heat(
    rows: Sequence[str], columns: Sequence[str], changes: np.ndarray, full: float, baseline: str, path: Path
) -> None:
    """Plot changes of KL from the baseline as numbers on blue (lower) to orange (higher).

    Args:
        changes: float64 (rows, columns), relative; NaN: left empty.
        full: the change that has the full colour.
    """
    size = 1.9 + 0.62 * len(columns), 1.3 + 0.21 * len(rows)
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    axes = figure.add_subplot()
    # weak colours keep black figures legible
    axes.imshow(changes, cmap=_BETTER_TO_WORSE, vmin=-2 * full, vmax=2 * full, aspect="auto")
    for (row, column), value in np.ndenumerate(changes):
        if np.isfinite(value):
            axes.text(column, row, f"{100 * value:+.1f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(
        range(len(columns)),
        [literal(name) for name in columns],
        fontsize=7.5,
        rotation=30,
        ha="left",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), [literal(name) for name in rows], fontsize=7.5)
    axes.xaxis.tick_top()
    axes.set_xlabel(f"KL against {baseline}, %; not tested", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)
