"""The plots of a study, for Dagster, MLflow and slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plumbline.calibration_report.plots import DIFFERENCE as DIFFERENCE
from plumbline.calibration_report.plots import DOMAINS as DOMAINS
from plumbline.calibration_report.plots import Mark, plot_forest, plot_heat
from plumbline.calibration_report.scales import full_colour
from plumbline.figure import save

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito (2008)
MARKERS = "osD^vP"
CURVE = "size_curve.png"


def plot_differences(verdict: Mapping[str, Any], path: Path) -> None:
    """Plot relative differences of mean KL from the baseline: a panel per scheme, a row per rule and size.

    Dots are the draws.

    Args:
        verdict: the content of verdict.json.
    """
    rows = list(dict.fromkeys((c["rule"], c["n"]) for c in verdict["comparisons"]))
    rules = list(dict.fromkeys(rule for rule, _ in rows))
    at = {row: -(place + 0.8 * rules.index(row[0])) for place, row in enumerate(rows)}  # a gap between rules
    panels = {
        scheme: [
            Mark(at[c["rule"], c["n"]], c["difference"], c["low"], c["high"], c["verdict"], c["draws"])
            for c in verdict["comparisons"]
            if c["scheme"] == scheme
        ]
        for scheme in verdict["schemes"]
    }
    plot_forest(panels, {y: f"{rule}, n = {n}" for (rule, n), y in at.items()}, verdict["baseline"], path)


def plot_domains(verdict: Mapping[str, Any], path: Path) -> None:
    """Plot the change of KL against the baseline per domain: rules and sizes by schemes and domains."""
    by_cell = {(row["rule"], row["n"], row["scheme"]): row["domains"] for row in verdict["by_domain"]}
    rows = [(rule, n) for rule in verdict["rules"] if rule != verdict["baseline"] for n in verdict["sizes"]]
    names = list(verdict["by_domain"][0]["domains"])
    columns = [(scheme, name) for scheme in verdict["schemes"] for name in names]
    changes = np.array(
        [[by_cell[rule, n, scheme][name]["difference"] for scheme, name in columns] for rule, n in rows],
        dtype=np.float64,
    )
    labels = [f"{rule}, n = {n}" for rule, n in rows], [f"{scheme}, {name}" for scheme, name in columns]
    plot_heat(*labels, changes, full_colour(changes[np.isfinite(changes)]), verdict["baseline"], path)


def plot_curve(verdict: Mapping[str, Any], path: Path) -> None:
    """Plot mean KL of the baseline by size, on logarithmic axes; a ring marks the size that is enough."""
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
    save(figure, path)
