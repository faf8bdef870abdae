"""The picture of a study, for Dagster's page and for slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5f6670"  # Okabe and Ito (2008): told apart with any colour vision
NAME = "difference.png"


def plot_differences(verdict: Mapping[str, Any], path: Path) -> None:
    """Relative difference of mean KL from the baseline by size, a panel per scheme and rule; every draw is a dot.

    Args:
        verdict: the content of verdict.json.
    """
    panels = [
        (rule, scheme)
        for rule in dict.fromkeys(c["rule"] for c in verdict["comparisons"])
        for scheme in verdict["schemes"]
    ]
    across = len(verdict["schemes"])
    down = len(panels) // across
    figure = Figure(figsize=(1 + 2.9 * across, 0.5 + 2.6 * down), dpi=80, layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for (rule, scheme), axes in zip(panels, grid.flat, strict=True):
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        found = [c for c in verdict["comparisons"] if (c["rule"], c["scheme"]) == (rule, scheme)]
        for place, c in enumerate(found):
            colour = {"better": BLUE, "worse": ORANGE}.get(c["verdict"], GREY)
            dots = [100 * value for value in c["draws"]]
            axes.plot([place - 0.22] * len(dots), dots, "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            if c["low"] is not None:
                axes.plot([place] * 2, [100 * c["low"], 100 * c["high"]], color=colour, linewidth=2.5)
            face = colour if c["verdict"] in ("better", "worse") else "white"
            axes.plot(place, 100 * c["difference"], "o", color=colour, markerfacecolor=face, markersize=8)
        axes.set_xticks(range(len(found)), [f"n = {c['n']}" for c in found])
        axes.set_xlim(-0.6, len(found) - 0.4)
        axes.set_title(f"{rule}, {scheme}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    label = f"KL against {verdict['baseline']}, %"
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    # The name and version of the software, which would be written into it, change the bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
