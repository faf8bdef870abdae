"""Representativeness of the study's random sets: every metric, measured once per set and cached."""

from __future__ import annotations

from typing import Any

import numpy as np

from plumbline.base_model.one_thread import one_thread
from plumbline.progress import Bar
from plumbline.study.draws import Cell, Plan
from plumbline.study.result_cache import ResultCache


def measure_distances(plan: Plan, cache: ResultCache) -> tuple[dict[int, dict[str, np.ndarray]], str | None]:
    """Distances of the random sets to production, in order of the draws; cached ones are not measured again.

    Returns:
        Size -> metric -> float64 (sets,), with the metrics that all sets of the size have; and the reason if there are
        none.
    """
    params = plan.params
    if not params.random_sets:
        return {}, "random_sets is 0"
    if (rule := params.random_rule) is None:
        return {}, "no rule of the study is `strategy: random` without options, whose sets would tell"
    wanted = [Cell(draw, n, rule) for n in params.sizes for draw in range(max(params.draws, params.random_sets))]
    values_of: dict[Cell, dict[str, float]] = {}
    for cell in Bar(wanted, desc="representativeness", unit="set"):
        values = cache.load_figures(**_identity(plan, cell))
        if values is None:
            with one_thread():
                values = _distances(plan, cell)
            cache.store_figures(values, **_identity(plan, cell))
        values_of[cell] = values
    sizes: dict[int, dict[str, np.ndarray]] = {}
    for n in params.sizes:
        measured = [values_of[cell] for cell in wanted if cell.n == n]
        names = sorted(set.intersection(*(set(values) for values in measured)))
        sizes[n] = {name: np.array([values[name] for values in measured]) for name in names}
    if not all(sizes.values()):
        return {}, "the tuning split is empty, so there is nothing that a set should represent"
    return sizes, None


def _identity(plan: Plan, cell: Cell) -> dict[str, Any]:
    return {"what": "distances", **plan.identity(cell)}


def _distances(plan: Plan, cell: Cell) -> dict[str, float]:
    from plumbline.calibration_set.representativeness.compare import distances

    drawn = plan.chosen(cell)
    return distances(plan.sources, drawn.pool, drawn.selection, drawn.rows)
