"""What a study draws: for every draw a part of the pool, and from that same part each rule's sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from assets.calibration_choice.choice import resolve
from assets.calibration_set.pool import of_domains
from assets.calibration_set.select import choose, joined
from assets.calibration_set.strategies import get
from assets.calibration_set.strategies.base import Pool, generator
from assets.study.params import RuleParams, StudyParams

STREAM = "sub-pool of a study"
"""Name of the random stream that draws the sub-pools; every strategy has a stream of its own."""


@dataclass(frozen=True, order=True)
class Cell:
    """One calibration set of the study."""

    draw: int
    n: int
    rule: str


def cells(params: StudyParams) -> list[Cell]:
    """Every set that the study draws, draw after draw, so that a run cut short has whole draws."""
    return [Cell(draw, n, rule) for draw in range(params.draws) for n in params.sizes for rule in params.rules]


def sub_pool(pool: Pool, share: float, seed: int) -> Pool:
    """The samples of a random `share` of the pool's documents, rounded up; the rest of the pool stays.

    By document, because windows of one document say nearly the same: without some of them little would change.
    """
    of_row = np.array(pool.doc_ids)
    documents = np.unique(of_row)
    kept = generator(seed, STREAM).permutation(len(documents))[: math.ceil(share * len(documents))]
    return pool.subset(np.flatnonzero(np.isin(of_row, documents[kept])).astype(np.int64))


def asked_of(rule: str, params: RuleParams, n: int, seed: int) -> dict[str, Any]:
    """Every parameter of one set, defaults filled in: what `choice.json` holds for a calibration choice.

    Raises:
        ValueError: no such strategy or option; the message names the rule.
    """
    try:
        return resolve(rule, {**params.model_dump(), "n": n, "seed": seed})
    except ValueError as error:
        why = str(error).removeprefix("params.yaml, calibrations: ")
        raise ValueError(f"params.yaml, studies, rules: {why}") from error


def draw_set(part: Pool, asked: Mapping[str, Any]) -> pa.Table:
    """The calibration set that a rule chooses from a sub-pool, as `calibration_set` would store it.

    Raises:
        ValueError: as for a calibration choice; the message names rule, size and seed.
    """
    try:
        pool = of_domains(part, asked["domains"], asked["name"])
        return joined(pool, choose(pool, get(asked["strategy"]), asked, len(part)), asked["name"])
    except ValueError as error:
        where = f"study, rule {asked['name']} with n = {asked['n']} and seed {asked['seed']}"
        raise ValueError(f"{where}: {error}") from error
