"""The pictures of a study, for Dagster's page, for MLflow and for slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5f6670"  # Okabe and Ito (2008): told apart with any colour vision
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vP"
DIFFERENCE, CURVE = "difference.png", "size_curve.png"


def plot_differences(verdict: Mapping[str, Any], path: Path) -> None:
    """Relative difference of mean KL from the baseline: a panel per scheme, a row per rule and size; draws are dots.

    Args:
        verdict: the content of verdict.json.
    """
    rows = list(dict.fromkeys((c["rule"], c["n"]) for c in verdict["comparisons"]))
    rules = list(dict.fromkeys(rule for rule, _ in rows))
    at = {row: -(place + 0.8 * rules.index(row[0])) for place, row in enumerate(rows)}  # a gap between rules
    across = len(verdict["schemes"])
    figure = Figure(figsize=(1.6 + 2.5 * across, 0.9 + 0.21 * len(rows)), dpi=80, layout="constrained")
    panels = figure.subplots(1, across, sharex=True, sharey=True, squeeze=False)[0]
    for scheme, axes in zip(verdict["schemes"], panels, strict=True):
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        for c in (c for c in verdict["comparisons"] if c["scheme"] == scheme):
            y, called = at[c["rule"], c["n"]], c["verdict"] in ("better", "worse")
            colour = {"better": BLUE, "worse": ORANGE}.get(c["verdict"], GREY)
            dots = [100 * value for value in c["draws"]]
            axes.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.25, markersize=2.5, markeredgewidth=0)
            if c["low"] is not None:
                axes.plot([100 * c["low"], 100 * c["high"]], [y] * 2, color=colour, linewidth=2)
            face = colour if called else "white"
            axes.plot(100 * c["difference"], y, "o", color=colour, markerfacecolor=face, markersize=5)
        axes.set_title(scheme, fontsize=9)
        axes.set_xlabel(f"KL against {verdict['baseline']}, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(list(at.values()), [f"{rule}, n = {n}" for rule, n in at])
    _save(figure, path)


def plot_curve(verdict: Mapping[str, Any], path: Path) -> None:
    """Mean KL of the baseline by size, on logarithmic axes; beyond a ring nothing is gained that can be seen."""
    figure = Figure(figsize=(5.2, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    for place, curve in enumerate(verdict["size_curve"]):
        sizes = [row["n"] for row in curve["sizes"]]
        means = [row["kl_mean"] for row in curve["sizes"]]
        spread = [min(row["kl_sd"], 0.9 * row["kl_mean"]) for row in curve["sizes"]]
        style: dict[str, Any] = {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)]}
        axes.errorbar(sizes, means, yerr=spread, label=curve["scheme"], capsize=2, markersize=4, linewidth=1.2, **style)
        enough = sizes.index(curve["enough"])
        axes.plot(sizes[enough], means[enough], "o", color=style["color"], markersize=11, markerfacecolor="none")
    axes.set(xscale="log", yscale="log", xlabel="samples", ylabel=f"KL of {verdict['baseline']}, nats per token")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # The name and version of the software, which would be written into it, change the bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
