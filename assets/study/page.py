"""study.html: one page for people who did not run the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assets.calibration_report.page import environment
from assets.calibration_report.scales import around_zero, position, ticks

TEMPLATE = "study.html.j2"
TERMS = {
    "Rule": "A way to choose calibration texts: a strategy with its options. A rule can be applied again and again.",
    "Draw": "One application: a random part of the pool is set aside first, then every rule chooses from what is left, "
    "so that all rules face the same texts. That is what makes the draws paired.",
    "n": "How many texts a rule chooses.",
    "KL divergence": "How far the quantized model's probabilities for the next token are from the base model's, in "
    "nats, averaged over tokens. 0 means the same probabilities everywhere; lower is better.",
    "Spread": "Standard deviation of the KL from draw to draw: how much luck there is in a single choice.",
    "Interval": "Had other draws been made and other documents been held out, the figure would have come out a little "
    "different. The interval says how much, from drawing both again, thousands of times.",
}


def render(verdict: Mapping[str, Any], about: Mapping[str, Any], name: str = "") -> str:
    """The page as HTML.

    Args:
        verdict: the content of verdict.json.
        about: digests of what went in.
        name: of the study in params.yaml, for the command that makes it again.
    """
    return (
        environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            verdict=verdict,
            about=about,
            name=name,
            forest=forest(verdict),
            rows=table(verdict),
            curves=[curve(of) for of in verdict["size_curve"] if len(of["sizes"]) > 1],
            terms=TERMS,
        )
    )


def forest(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Every comparison with its interval and its draws, on one axis."""
    comparisons = verdict["comparisons"]
    low, high = around_zero([c[end] for c in comparisons for end in ("difference", "low", "high")])
    drawn = [value for c in comparisons for value in c["draws"]]
    room = (high - low) / 2  # a stray draw may widen the axis, but not swallow it
    low, high = max(min(low, *drawn), low - room), min(max(high, *drawn), high + room)
    groups = []
    for rule in dict.fromkeys(c["rule"] for c in comparisons):
        for scheme in verdict["schemes"]:
            rows = []
            for c in (c for c in comparisons if (c["rule"], c["scheme"]) == (rule, scheme)):
                at = {
                    end: None if c[end] is None else position(c[end], low, high)
                    for end in ("difference", "low", "high")
                }
                dots = [position(value, low, high) for value in c["draws"] if low <= value <= high]
                rows.append({**c, "at": at, "dots": dots, "outside": len(c["draws"]) - len(dots)})
            groups.append({"rule": rule, "scheme": scheme, "rows": rows})
    marks = [{"at": position(value, low, high), "value": value} for value in ticks(low, high, 4)]
    outside = sum(row["outside"] for group in groups for row in group["rows"])
    return {"groups": groups, "zero": position(0, low, high), "ticks": marks, "outside": outside}


def curve(of: Mapping[str, Any]) -> dict[str, Any]:
    """One scheme's divergence by size, on logarithmic axes, in the units of a picture of 640 × 220."""
    rows = of["sizes"]
    x = np.log([row["n"] for row in rows])
    ends = [(max(row["kl_mean"] - row["kl_sd"], row["kl_mean"] / 2), row["kl_mean"] + row["kl_sd"]) for row in rows]
    low, high = (np.log(max(value, 1e-12)) for value in (min(e[0] for e in ends), max(e[1] for e in ends)))
    room = max(high - low, 0.02)

    def across(value: float) -> float:
        return round(float(80 + 530 * (value - x[0]) / (x[-1] - x[0])), 1)

    def down(value: float) -> float:
        return round(float(190 - 175 * (np.log(max(value, 1e-12)) - low) / room), 1)

    points = [
        {"n": row["n"], "x": across(at), "y": down(row["kl_mean"]), "low": down(end[0]), "high": down(end[1])}
        for row, at, end in zip(rows, x, ends, strict=True)
    ]
    values = np.exp(np.linspace(low, low + room, 4))
    return {
        "scheme": of["scheme"],
        "points": points,
        "line": " ".join(f"{p['x']},{p['y']}" for p in points),
        "marks": [{"at": down(value), "value": f"{value:.2g}"} for value in values],
    }


def table(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per scheme, size and rule: the arm's figures, and how it compares."""
    compared = {(c["scheme"], c["n"], c["rule"]): c for c in verdict["comparisons"]}
    order = {rule: place for place, rule in enumerate([verdict["baseline"], *verdict["rules"]])}
    arms = sorted(
        verdict["arms"],
        key=lambda arm: (
            verdict["schemes"].index(arm["scheme"]),
            arm["n"],
            -1 if arm["rule"] == verdict["baseline"] else order[arm["rule"]],
        ),
    )
    return [{**arm, "compared": compared.get((arm["scheme"], arm["n"], arm["rule"]))} for arm in arms]
