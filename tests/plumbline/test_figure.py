"""Names in figures are drawn as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.evaluation.plots import plot_kl_by_domain
from plumbline.figure import LONGEST_LABEL, literal, new_axes


@pytest.mark.parametrize("name", [r"$\frac{ $x_{", "a$b$c", "one $", "line\nline", "<b> [x]", "x" * 90])
def test_a_domain_is_no_formula(name: str, tmp_path: Path) -> None:
    figure, axes = new_axes(4, 2)
    axes.barh([literal(name)], [1.0])
    figure.draw_without_rendering()
    [label] = axes.get_yticklabels()
    assert label._preprocess_math(label.get_text()) == (" ".join(name.split())[:LONGEST_LABEL], False) or (
        len(name) > LONGEST_LABEL
    )
    plot_kl_by_domain({name: {"kl_mean": 0.1, "top1_agreement": 0.5}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
