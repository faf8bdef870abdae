"""Quantize and evaluate every set of a study, sharing the model, forward passes and factors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.activation_stats.memory import hessian_bytes
from plumbline.activation_stats.multi_set import SetTotals, collect_together
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.totals import Sample
from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.inputs import linear_layers
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.calibration_set.reader import set_digest
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import HeldOut, HeldOutBatch, batches
from plumbline.evaluation.measure import measure
from plumbline.evaluation.params import EvaluationParams
from plumbline.execution.share_out import workers_here
from plumbline.histogram import n_buckets
from plumbline.progress import Bar
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.simulate import simulate
from plumbline.study.controls import without_calibration
from plumbline.study.draws import Cell, Plan
from plumbline.study.params import RTN, require_read_together
from plumbline.study.result_cache import Documents, Measured, ResultCache

T = TypeVar("T")
UNCALIBRATED = Cell(0, 0, RTN)
BATCH_TOKENS = EvaluationParams().batch_tokens
AT_ONCE = 66
"""Most sets read together: a killed study reads this many again. Fewer sets share fewer samples."""


def documents_of(held_out: HeldOut) -> tuple[Documents, np.ndarray]:
    """The documents that have a predicted token, and the document of each sample, int64; -1 for one without."""
    predicted = np.array([len(ids) - 1 for ids in held_out.tokens])
    pairs = list(zip(held_out.domains, held_out.doc_ids, strict=True))
    some = sorted({pair for pair, count in zip(pairs, predicted, strict=True) if count > 0})
    row = {pair: index for index, pair in enumerate(some)}
    of_sample = np.array([row.get(pair, -1) for pair in pairs])
    tokens = np.bincount(of_sample[predicted > 0], weights=predicted[predicted > 0], minlength=len(some))
    return Documents([doc for _, doc in some], [domain for domain, _ in some], tokens.astype(np.int64)), of_sample


def missing_cells(plan: Plan, schemes: Mapping[str, SchemeParams], cache: ResultCache) -> list[Cell]:
    """The cells of which the cache lacks a result; the control without calibration comes first."""
    return list(_Work(plan, schemes, cache).missing)


def measure_cells(
    plan: Plan,
    schemes: Mapping[str, SchemeParams],
    settings: StatisticsParams,
    cache: ResultCache,
    only: Collection[Cell] | None = None,
) -> dict[tuple[Cell, str], Measured]:
    """Quantize and evaluate every set of the study under every scheme; a result in the cache is not measured again.

    Loaded or computed once: the base model, its answers on the held-out documents, the forward pass over a sample of
    the pool for all sets that are kept in memory together, and the factor of a Hessian for all schemes that read it.
    Nothing is written but results: the quantized model is simulated, which gives the logits of the exported one.
    Groups of sets are worked on side by side, each on one core.

    Args:
        plan: the sets.
        schemes: by name, in order.
        settings: `statistics:`. Keys and values are described if a scheme reads them, whatever `cache` says.
        cache: where results are stored.
        only: the cells to measure, if not all.

    Returns:
        A result per set and scheme; that of the control without calibration under `Cell(0, 0, RTN)`.

    Raises:
        ValueError: a rule cannot choose, the model cannot be quantized or evaluated, or the settings are not supported
            for reading many sets at once.
    """
    reads = {part for scheme in schemes.values() for part in scheme.reads}
    histogram = "histogram" in reads
    settings = settings.model_copy(update={"cache": "cache" in reads})
    require_read_together(settings, histogram)
    bits = settings.mantissa_bits if histogram else None
    work = _Work(plan, schemes, cache, only)
    todo = [cell for cell in plan.cells if cell in work.missing]
    per_model = len(plan.held_out.tokens)
    mine = plan.cells if only is None else [cell for cell in plan.cells if cell in only]
    samples = 2 * sum(cell.n for cell in mine)  # of a set: it is chosen, then read
    with Bar(
        total=samples + per_model * len(work.wanted),
        desc="study",
        unit="sample",
        unit_scale=True,
        smoothing=0.02,
    ) as bar:
        bar.update(samples - 2 * sum(cell.n for cell in todo) + per_model * len(work.results))
        if work.missing:
            model = plan.sources.load_model()
            advance = _Steps(bar)
            finish = partial(work.finish, _Evaluator(model, plan.held_out), lambda: advance(per_model))
            if UNCALIBRATED in work.missing:
                with one_thread():
                    finish(UNCALIBRATED, NO_SET)
            budget = plan.params.statistics_bytes or psutil.virtual_memory().available // (2 * workers_here())
            at_once = max(1, min(AT_ONCE, budget // _bytes_of_set(model, settings, bits)))
            for part in _parts(todo, at_once):
                inputs = _statistics(part, plan, model, settings, bits, advance)
                in_parallel([partial(finish, cell, read) for cell, read in zip(part, inputs, strict=True)])
                del inputs  # before those of the next part are collected
    return {key: work.results[key] for key in work.wanted}


class _Work:
    """Which results a study wants, and which of them are there."""

    def __init__(
        self,
        plan: Plan,
        schemes: Mapping[str, SchemeParams],
        cache: ResultCache,
        only: Collection[Cell] | None = None,
    ) -> None:
        self.plan, self.schemes, self.cache = plan, schemes, cache
        self.uncalibrated = {
            name: bare for name, scheme in schemes.items() if (bare := without_calibration(scheme)) is not None
        }
        every = [
            *((UNCALIBRATED, name) for name in self.uncalibrated),
            *((cell, name) for cell in plan.cells for name in schemes),
        ]
        self.wanted = every if only is None else [key for key in every if key[0] in only]
        self.results = {
            key: result for key in self.wanted if (result := cache.load(**self._identity(*key))) is not None
        }
        self.missing: dict[Cell, list[str]] = {}
        """By cell, the schemes without a result."""
        for cell, name in self.wanted:
            if (cell, name) not in self.results:
                self.missing.setdefault(cell, []).append(name)

    def finish(self, evaluate: _Evaluator, advance: Callable[[], object], cell: Cell, inputs: _Inputs) -> None:
        """Measure the missing results of a cell, and store each in the cache."""
        by_name = self.uncalibrated if cell == UNCALIBRATED else self.schemes
        schemes = {name: by_name[name] for name in self.missing[cell]}
        factors = _factors(schemes.values())
        for name, scheme in schemes.items():
            result = evaluate(inputs, scheme, factors)
            self.cache.store(result, **self._identity(cell, name))
            self.results[cell, name] = result
            advance()

    def _identity(self, cell: Cell, name: str) -> dict[str, Any]:
        if cell == UNCALIBRATED:
            return {"control": RTN, "scheme": self.uncalibrated[name].model_dump(mode="json")}
        return {**self.plan.identity(cell), "scheme": self.schemes[name].model_dump(mode="json")}


def _factors(schemes: Collection[SchemeParams]) -> Factors:
    """A cache of the factors of one set; one that holds nothing, if no factor is read twice."""
    kinds = {(scheme.damping, scheme.act_order) for scheme in schemes}
    twice = len(kinds) < len(schemes) or any(scheme.mixed is not None for scheme in schemes)
    return Factors() if twice else Factors(max_bytes=0)


class _Steps:
    """Advances a progress bar from several threads."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._lock = bar, Lock()

    def __call__(self, steps: int) -> None:
        with self._lock:
            self._bar.update(steps)


def _statistics(
    part: Sequence[Cell],
    plan: Plan,
    model: PreTrainedModel,
    settings: StatisticsParams,
    mantissa_bits: int | None,
    advance: Callable[[int], object],
) -> list[_Inputs]:
    """Choose the sets of some cells, then collect their statistics in one group per core.

    With small models or busy cores, two cores on one matrix product mostly wait for each other, and they sum in another
    order. A sample in sets of two groups is read twice.
    """
    chosen: list[dict[str, list[int]]] = []
    with one_thread():
        for cell in part:
            drawn = plan.draw(cell)
            chosen.append(dict(zip(drawn["sample_id"].to_pylist(), drawn["input_ids"].to_pylist(), strict=True)))
            advance(cell.n)

    def read(sets: Sequence[Mapping[str, list[int]]]) -> list[SetTotals]:
        return collect_together(
            with_own_modules(model),  # its modules carry the hooks
            {name: ids for tokens in sets for name, ids in tokens.items()},
            [list(tokens) for tokens in sets],
            settings.ignore,
            advance,
            normalization=settings.normalization,
            experts=settings.experts,
            mantissa_bits=mantissa_bits,
            cache=settings.cache,
        )

    groups = _parts(chosen, -(-len(chosen) // torch.get_num_threads()))
    together = [totals for group in in_parallel([partial(read, sets) for sets in groups]) for totals in group]
    fingerprint = plan.sources.fingerprint
    return [
        _Inputs(totals, sorted(tokens.items()), set_digest(list(tokens), fingerprint))
        for tokens, totals in zip(chosen, together, strict=True)
    ]


def _parts(todo: Sequence[T], at_once: int) -> Iterator[list[T]]:
    """Cells (or sets) in as few parts of at most `at_once` as possible, of nearly equal size, in order."""
    count = -(-len(todo) // at_once)
    edges = [len(todo) * part // count for part in range(count + 1)]
    return (list(todo[start:stop]) for start, stop in pairwise(edges))


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The inputs of quantization: statistics and samples of a set."""

    totals: SetTotals
    samples: Sequence[Sample]
    """Sorted by id."""
    set_digest: str


NO_SET = _Inputs(SetTotals({}, (), StatisticsParams()), [], "")


def _bytes_of_set(model: PreTrainedModel, settings: StatisticsParams, mantissa_bits: int | None) -> int:
    """Upper bound of the bytes of a set's statistics, as if every layer had its own site."""
    if mantissa_bits is None:
        return hessian_bytes(model, settings.ignore)
    layers = linear_layers(model, settings.ignore).values()
    widths = (max(weight.shape) for layer in layers if isinstance(weight := layer.weight, Tensor))
    return hessian_bytes(model, settings.ignore) + 4 * sum(widths) * n_buckets(mantissa_bits)


class _Evaluator:
    """Quantizes the model and compares it with the base model, whose predictions are computed once."""

    def __init__(self, model: PreTrainedModel, held_out: HeldOut) -> None:
        self.model = model
        self.work: list[HeldOutBatch] = list(batches(held_out, BATCH_TOKENS))
        self.base = BaseLogits(lambda: model, self.work, EvaluationParams().base_logits_bytes)
        documents, self.document_of_sample = documents_of(held_out)
        self.documents = len(documents.names)
        with one_thread():  # as for the quantized models, so that the number of cores has no effect
            for index in range(len(self.work)):
                self.base[index]

    def __call__(self, inputs: _Inputs, scheme: SchemeParams, factors: Factors) -> Measured:
        calibration = (inputs.samples, None)
        quantized = apply_scheme(self.model, inputs.totals, scheme, lambda: calibration, factors, errors=False)
        tokens, sample_of_token = measure(self.base, simulate(self.model, quantized, scheme), self.work)
        of_token = self.document_of_sample[sample_of_token]
        return Measured(
            kl=np.bincount(of_token, weights=tokens.kl, minlength=self.documents),
            agree=int(tokens.agree.sum()),
            samples=len(inputs.samples),
            tokens=sum(len(ids) for _, ids in inputs.samples),
            set_digest=inputs.set_digest,
            fallbacks=sum(layer.fallback is not None for layer in quantized.layers.values()),
        )
