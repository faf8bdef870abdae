"""study.html: the results of a study on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.artifact import sha256_json
from plumbline.calibration_report.page import environment
from plumbline.calibration_report.scales import around_zero, full_colour, heat, position, ticks

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


def render(
    verdict: Mapping[str, Any],
    about: Mapping[str, Any],
    made_by: Mapping[str, str] | None = None,
    results: Mapping[str, str] | None = None,
    name: str = "",
) -> str:
    """The page as HTML.

    Args:
        verdict: the content of verdict.json.
        about: digests of the inputs.
        made_by: digests of the inputs by path, and the version of the code, as `build_study` has them.
        results: digests of the files that the page shows, by name.
        name: of the study in params.yaml, for the command that reproduces it.
    """
    return (
        environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            verdict=verdict,
            about=about,
            made_by=dict(made_by or {}),
            results=results or {},
            name=name,
            forest=forest(verdict),
            rows=table(verdict),
            comparisons=matrix(verdict["comparisons"], verdict["schemes"]),
            controls=matrix(verdict["controls"], verdict["schemes"]),
            correlations=correlations(verdict["representativeness"]["by_scheme"]),
            domains=domains(verdict),
            sets=sets(verdict),
            curves=[curve(scheme_curve) for scheme_curve in verdict["size_curve"] if len(scheme_curve["sizes"]) > 1],
            terms=TERMS,
        )
    )


def forest(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Every comparison with its interval and its draws: a panel per scheme, all on one axis."""
    comparisons = verdict["comparisons"]
    low, high = around_zero([c[end] for c in comparisons for end in ("difference", "low", "high")])
    drawn = [value for c in comparisons for value in c["draws"]]
    room = (high - low) / 2  # an outlier may widen the axis by half at most
    low, high = max(min(low, *drawn), low - room), min(max(high, *drawn), high + room)
    panels = []
    for scheme in verdict["schemes"]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for c in (c for c in comparisons if c["scheme"] == scheme):
            at = {end: None if c[end] is None else position(c[end], low, high) for end in ("difference", "low", "high")}
            dots = [position(value, low, high) for value in c["draws"] if low <= value <= high]
            row = {**c, "at": at, "dots": dots, "outside": len(c["draws"]) - len(dots)}
            groups.setdefault(c["rule"], []).append(row)
        panels.append(
            {
                "scheme": scheme,
                "groups": [{"rule": rule, "rows": comparisons_of_rule} for rule, comparisons_of_rule in groups.items()],
            }
        )
    marks = [{"at": position(value, low, high), "value": value} for value in ticks(low, high, 5)]
    outside = sum(row["outside"] for panel in panels for group in panel["groups"] for row in group["rows"])
    return {"panels": panels, "zero": position(0, low, high), "ticks": marks, "outside": outside}


def curve(scheme_curve: Mapping[str, Any]) -> dict[str, Any]:
    """One scheme's divergence by size, on logarithmic axes, in the units of a picture of 320 × 200."""
    rows = scheme_curve["sizes"]
    x = np.log([row["n"] for row in rows])
    ends = [(max(row["kl_mean"] - row["kl_sd"], row["kl_mean"] / 2), row["kl_mean"] + row["kl_sd"]) for row in rows]
    low, high = (np.log(max(value, 1e-12)) for value in (min(e[0] for e in ends), max(e[1] for e in ends)))
    room = max(high - low, 0.02)

    def across(value: float) -> float:
        return round(float(68 + 234 * (value - x[0]) / (x[-1] - x[0])), 1)

    def down(value: float) -> float:
        return round(float(172 - 160 * (np.log(max(value, 1e-12)) - low) / room), 1)

    points = [
        {"n": row["n"], "x": across(at), "y": down(row["kl_mean"]), "low": down(end[0]), "high": down(end[1])}
        for row, at, end in zip(rows, x, ends, strict=True)
    ]
    values = np.exp(np.linspace(low, low + room, 4))
    return {
        "scheme": scheme_curve["scheme"],
        "enough": scheme_curve["enough"],
        "points": points,
        "line": " ".join(f"{p['x']},{p['y']}" for p in points),
        "marks": [{"at": down(value), "value": f"{value:.3g}"} for value in values],
    }


def table(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per scheme, size and rule: the arm's figures and its comparison with the baseline."""
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


def matrix(entries: Sequence[Mapping[str, Any]], schemes: Sequence[str]) -> list[dict[str, Any]]:
    """Comparisons as rows by rule and size, with a cell per scheme; None: not measured."""
    comparisons = {(c["rule"], c["n"], c["scheme"]): c for c in entries}
    rows = dict.fromkeys((rule, n) for rule, n, _ in comparisons)
    return [
        {"rule": rule, "n": n, "cells": [comparisons.get((rule, n, scheme)) for scheme in schemes]} for rule, n in rows
    ]


def correlations(by_scheme: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of representativeness as rows, those that correlate most on top, with a cell per scheme."""
    entries = {(scheme["scheme"], entry["metric"]): entry for scheme in by_scheme for entry in scheme["metrics"]}
    strength = {
        metric: max(abs(e["rho"]) for (_, name), e in entries.items() if name == metric) for _, metric in entries
    }
    names = sorted(strength, key=lambda metric: (-strength[metric], metric))
    return [
        {"metric": name, "cells": [entries.get((scheme["scheme"], name)) for scheme in by_scheme]} for name in names
    ]


def domains(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Change of KL against the baseline per domain: a row per rule and size, a column per scheme and domain."""
    by_cell = {(row["rule"], row["n"], row["scheme"]): row["domains"] for row in verdict["by_domain"]}
    names = sorted({name for cells in by_cell.values() for name in cells})
    columns = [(scheme, name) for scheme in verdict["schemes"] for name in names]
    full = full_colour(cell["difference"] or 0.0 for cells in by_cell.values() for cell in cells.values())
    rows = []
    for rule in sorted(verdict["rules"], key=lambda rule: rule != verdict["baseline"]):
        for n in verdict["sizes"]:
            cells = [by_cell[rule, n, scheme][name] for scheme, name in columns]
            rows.append({"rule": rule, "n": n, "cells": [{**cell, **heat(cell["difference"], full)} for cell in cells]})
    return {"columns": columns, "rows": rows, "full": full, "names": names}


def sets(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per rule and size the mean tokens of its sets, and one digest over the digests of the draws' sets."""
    arms = [arm for arm in verdict["arms"] if arm["scheme"] == verdict["schemes"][0]]  # the sets are the same in all
    rows = []
    for rule in verdict["rules"]:
        for arm in (arm for arm in arms if arm["rule"] == rule):
            about = {"rule": rule, "n": arm["n"], "tokens": arm["calibration_tokens"]}
            rows.append({**about, "digest": sha256_json([draw["set"] for draw in arm["draws"]])})
    return rows
