"""The draws of a study: every draw is a sub-pool, from which all rules and controls choose their sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.calibration_choice.choice import resolve
from plumbline.calibration_set.pool import Sources, of_domains
from plumbline.calibration_set.select import choose, joined
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.evaluation.held_out import HeldOut
from plumbline.study.controls import Oracle, nonsense
from plumbline.study.params import CONTROLS, NONSENSE, ORACLE, RANDOM, RuleParams, StudyParams

STREAM = "sub-pool of a study"
"""Name of the random stream that draws the sub-pools; every strategy has a stream of its own."""


@dataclass(frozen=True, order=True)
class Cell:
    """One calibration set of the study."""

    draw: int
    n: int
    rule: str
    """A rule's name, or a control's."""


def cells(params: StudyParams) -> list[Cell]:
    """Every set of the study, draw after draw, so that an interrupted run has whole draws.

    The sizes of the curve have the baseline only. Draws beyond `draws` have the plain random rule only; they serve to
    test whether representativeness predicts quality.
    """
    wanted = []
    for draw in range(params.draws):
        for n in params.all_sizes:
            rules = [*params.rules, NONSENSE, ORACLE] if n in params.sizes else [params.baseline]
            wanted += [Cell(draw, n, rule) for rule in rules]
    if (random := params.random_rule) is not None:
        wanted += [Cell(draw, n, random) for draw in range(params.draws, params.random_sets) for n in params.sizes]
    return wanted


def sub_pool(pool: Pool, share: float, seed: int) -> Pool:
    """The pool restricted to the samples of a random `share` of its documents, rounded up.

    By document, because windows of a document are similar: leaving out some of them would change little.
    """
    of_row = np.array(pool.doc_ids)
    documents = np.unique(of_row)
    chosen = generator(seed, STREAM).permutation(len(documents))[: math.ceil(share * len(documents))]
    return pool.subset(np.flatnonzero(np.isin(of_row, documents[chosen])).astype(np.int64))


def asked_of(rule: str, params: RuleParams, n: int, seed: int) -> dict[str, Any]:
    """Every parameter of a set with defaults filled in, as in the `choice.json` of a calibration choice.

    Raises:
        ValueError: no such strategy or option; the message names the rule.
    """
    try:
        return resolve(rule, {**params.model_dump(), "n": n, "seed": seed})
    except ValueError as error:
        why = str(error).removeprefix("params.yaml, calibrations: ")
        raise ValueError(f"params.yaml, studies, rules: {why}") from error


@dataclass(frozen=True, eq=False)
class Drawn:
    """A calibration set as a rule chose it."""

    pool: Pool
    """The pool that the rule chose from."""
    selection: Selection
    rows: pa.Table
    """The samples as `calibration_set` would store them."""


def draw_set(part: Pool, choice: Mapping[str, Any]) -> Drawn:
    """Let a rule choose from a sub-pool.

    Raises:
        ValueError: as for a calibration choice; the message names rule, size and seed.
    """
    try:
        pool = of_domains(part, choice["domains"], choice["name"])
        selection = choose(pool, get(choice["strategy"]), choice, len(part))
        return Drawn(pool, selection, joined(pool, selection, choice["name"]))
    except ValueError as error:
        where = f"study, rule {choice['name']} with n = {choice['n']} and seed {choice['seed']}"
        raise ValueError(f"{where}: {error}") from error


class Plan:
    """The sets of a study: their parameters, identities and samples."""

    def __init__(self, params: StudyParams, sources: Sources, held_out: HeldOut) -> None:
        """Check every rule and its options; draw nothing yet.

        Raises:
            ValueError: no such strategy or option.
        """
        self.params, self.sources, self.held_out = params, sources, held_out
        wanted = cells(params)
        self._asked = {
            cell: asked_of(cell.rule, params.rules[cell.rule], cell.n, params.seed + cell.draw)
            for cell in wanted
            if cell.rule not in CONTROLS
        }
        lacking = {n: self.oracle.lacks(n) for n in params.sizes}
        self.absent = {(ORACLE, n): why for n, why in lacking.items() if why is not None}
        """(control, n) -> reason why it is not measured."""
        self.cells = [cell for cell in wanted if (cell.rule, cell.n) not in self.absent]
        self._latest: tuple[int, Pool] | None = None

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.sources.samples, self.held_out)

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides the set except inputs and code."""
        if cell in self._asked:
            choice = {key: value for key, value in self._asked[cell].items() if key != "name"}
            return {"choice": choice, "share": self.params.share}
        return {
            "control": cell.rule,
            "n": cell.n,
            "seed": self.params.seed + cell.draw,
            **({"share": self.params.share} if cell.rule == NONSENSE else {}),
        }

    def draw(self, cell: Cell) -> pa.Table:
        """The set's samples: at least the columns sample_id and input_ids.

        Raises:
            ValueError: a rule cannot choose so many.
        """
        if cell in self._asked:
            return self.chosen(cell).rows
        seed = self.params.seed + cell.draw
        if cell.rule == ORACLE:
            return self.oracle.draw(cell.n, seed)
        pool = self._part(cell.draw)
        like = draw_set(pool, asked_of(NONSENSE, RANDOM, cell.n, seed)).rows["input_ids"].to_pylist()
        vocabulary = int(self.sources.load_model().config.get_text_config().vocab_size)
        return nonsense(like, pool.special_prefix, vocabulary, seed)

    def chosen(self, cell: Cell) -> Drawn:
        """The set of a rule with its pool and selection."""
        return draw_set(self._part(cell.draw), self._asked[cell])

    def _part(self, draw: int) -> Pool:
        """The sub-pool of a draw; the latest one is cached, with the data its samples have read."""
        if self._latest is None or self._latest[0] != draw:
            self._latest = draw, sub_pool(self.sources.pool(), self.params.share, self.params.seed + draw)
        return self._latest[1]
