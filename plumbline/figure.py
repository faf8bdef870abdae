"""Figures whose PNG bytes depend on their content alone, and the colours of all plots."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LONGEST_LABEL = 40
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#5f6670"  # Okabe and Ito (2008): distinct with any colour vision


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; no pyplot, so that no display is needed and no state is kept."""
    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def literal(name: str) -> str:
    """A name of the user's, such as a domain, for a label: in one line, short, and no formula between dollar signs."""
    line = " ".join(name.split())
    return (line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…").replace("$", r"\$")


def save(figure: Figure, path: Path, tight: bool = False) -> None:
    """Write a figure as PNG, without the software's name and version, which would change the bytes."""
    figure.savefig(path, format="png", bbox_inches="tight" if tight else None, metadata={"Software": None})
