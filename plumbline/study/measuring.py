"""Every set of a study quantized and evaluated, sharing what can be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from plumbline.activation_stats.multi_set import SetTotals, collect_together, hessian_bytes
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.inputs import linear_layers
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.calibration_set.reader import set_digest
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import Batch, HeldOut, batches
from plumbline.evaluation.measure import measure
from plumbline.evaluation.params import EvaluationParams
from plumbline.histogram import n_buckets
from plumbline.quantized_model.factors import Factors
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.quantize import Samples, quantize_model
from plumbline.quantized_model.simulate import simulate
from plumbline.study.controls import without_calibration
from plumbline.study.draws import Cell, Plan
from plumbline.study.params import RTN, require_read_together
from plumbline.study.result_cache import Documents, Kept, Measured

T = TypeVar("T")
UNCALIBRATED = Cell(0, 0, RTN)
BATCH_TOKENS = EvaluationParams().batch_tokens
AT_ONCE = 66
"""Sets that are read together at most: what a study that is killed has to read again. Fewer share fewer samples."""


def documents_of(held_out: HeldOut) -> tuple[Documents, np.ndarray]:
    """The documents that have a predicted token, and the document of each sample, int64; -1 for one without."""
    predicted = np.array([len(ids) - 1 for ids in held_out.tokens])
    pairs = list(zip(held_out.domains, held_out.doc_ids, strict=True))
    some = sorted({pair for pair, count in zip(pairs, predicted, strict=True) if count > 0})
    row = {pair: index for index, pair in enumerate(some)}
    of_sample = np.array([row.get(pair, -1) for pair in pairs])
    tokens = np.bincount(of_sample[predicted > 0], weights=predicted[predicted > 0], minlength=len(some))
    return Documents([doc for _, doc in some], [domain for domain, _ in some], tokens.astype(np.int64)), of_sample


def measure_cells(
    plan: Plan, schemes: Mapping[str, SchemeParams], settings: StatisticsParams, kept: Kept
) -> dict[tuple[Cell, str], Measured]:
    """What every set of the study makes of the model under every scheme; what is kept already is not done again.

    Loaded or computed once: the base model, its answers on the held-out documents, the forward pass over a sample of
    the pool for all sets that are kept in memory together, and the factor of a Hessian for all schemes that read it.
    Nothing is written but results: the quantized model is simulated, which gives the logits of the exported one.
    Groups of sets are worked on side by side, each on one core.

    Args:
        plan: the sets.
        schemes: by name, in order.
        settings: `statistics:`.
        kept: where results are kept.

    Returns:
        A result per set and scheme; that of the control without calibration under `Cell(0, 0, RTN)`.

    Raises:
        ValueError: a rule cannot choose, or the model cannot be quantized or evaluated, or the settings ask for what
            reading many sets at once does not do.
    """
    histogram = any("histogram" in scheme.reads for scheme in schemes.values())
    require_read_together(settings, histogram)
    bits = settings.mantissa_bits if histogram else None
    uncalibrated = {name: bare for name, scheme in schemes.items() if (bare := without_calibration(scheme)) is not None}

    def identity(cell: Cell, name: str) -> dict[str, Any]:
        if cell == UNCALIBRATED:
            return {"control": RTN, "scheme": uncalibrated[name].model_dump(mode="json")}
        return {**plan.identity(cell), "scheme": schemes[name].model_dump(mode="json")}

    asked = [
        *((UNCALIBRATED, name) for name in uncalibrated),
        *((cell, name) for cell in plan.cells for name in schemes),
    ]
    found = {key: result for key in asked if (result := kept.find(**identity(*key))) is not None}
    missing: dict[Cell, list[str]] = {}
    for cell, name in asked:
        if (cell, name) not in found:
            missing.setdefault(cell, []).append(name)
    todo = [cell for cell in plan.cells if cell in missing]
    each = len(plan.held_out.tokens)
    total = 2 * sum(cell.n for cell in plan.cells) + each * len(asked)  # a set is chosen, read, and evaluated
    with tqdm(total=total, desc="study", unit="sample", unit_scale=True, smoothing=0.02, disable=None) as bar:
        bar.update(2 * sum(cell.n for cell in plan.cells) - 2 * sum(cell.n for cell in todo) + each * len(found))
        if missing:
            model = plan.sources.load_model()
            evaluate = _Evaluator(model, plan.held_out)
            advance = _Steps(bar)

            def finish(cell: Cell, schemes: Mapping[str, SchemeParams], given: _Given) -> None:
                factors = Factors()
                for name in missing[cell]:
                    result = evaluate(given, schemes[name], factors)
                    kept.keep(result, **identity(cell, name))
                    found[cell, name] = result
                    advance(each)

            if UNCALIBRATED in missing:
                with one_thread():
                    finish(UNCALIBRATED, uncalibrated, NO_SET)
            budget = plan.params.statistics_bytes or psutil.virtual_memory().available // 2
            at_once = max(1, min(AT_ONCE, budget // _bytes_of_set(model, settings, bits)))
            for part in _parts(todo, at_once):
                given = _statistics(part, plan, model, settings, bits, advance)
                in_parallel([partial(finish, cell, schemes, of) for cell, of in zip(part, given, strict=True)])
    return {key: found[key] for key in asked}


class _Steps:
    """Moves a bar from several threads."""

    def __init__(self, bar: tqdm) -> None:
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
) -> list[_Given]:
    """The sets of some cells, chosen, then read in as many groups as there are cores, each on a core of its own.

    Two cores on one product wait for each other more than they compute where models are small or cores are busy, and
    sum in another order. A sample that sets of two groups hold is read twice.
    """
    chosen: list[dict[str, list[int]]] = []
    with one_thread():
        for cell in part:
            drawn = plan.draw(cell)
            chosen.append(dict(zip(drawn["sample_id"].to_pylist(), drawn["input_ids"].to_pylist(), strict=True)))
            advance(cell.n)

    def read(sets: Sequence[Mapping[str, list[int]]]) -> list[SetTotals]:
        return collect_together(
            with_own_modules(model),  # for its hooks
            {name: ids for tokens in sets for name, ids in tokens.items()},
            [list(tokens) for tokens in sets],
            settings.ignore,
            advance,
            normalization=settings.normalization,
            mantissa_bits=mantissa_bits,
        )

    groups = _parts(chosen, -(-len(chosen) // torch.get_num_threads()))
    together = [totals for group in in_parallel([partial(read, sets) for sets in groups]) for totals in group]
    fingerprint = plan.sources.fingerprint
    return [
        _Given(totals, sorted(tokens.items()), set_digest(list(tokens), fingerprint))
        for tokens, totals in zip(chosen, together, strict=True)
    ]


def _parts(todo: Sequence[T], at_once: int) -> Iterator[list[T]]:
    """Cells (or sets) in as few parts as fit, of nearly equal size, in order."""
    count = -(-len(todo) // at_once)
    edges = [len(todo) * part // count for part in range(count + 1)]
    return (list(todo[start:stop]) for start, stop in pairwise(edges))


@dataclass(frozen=True, eq=False)
class _Given:
    """What a model is quantized from."""

    totals: SetTotals
    samples: Samples
    """In order of their id."""
    set_digest: str


NO_SET = _Given(SetTotals({}, (), StatisticsParams()), [], "")


def _bytes_of_set(model: PreTrainedModel, settings: StatisticsParams, mantissa_bits: int | None) -> int:
    """What the statistics of a set take, were every layer a site of its own."""
    if mantissa_bits is None:
        return hessian_bytes(model, settings.ignore)
    layers = linear_layers(model, settings.ignore).values()
    widths = (max(weight.shape) for layer in layers if isinstance(weight := layer.weight, Tensor))
    return hessian_bytes(model, settings.ignore) + 4 * sum(widths) * n_buckets(mantissa_bits)


class _Evaluator:
    """Quantizes the model from statistics and holds it against the base model, whose answers are computed once."""

    def __init__(self, model: PreTrainedModel, held_out: HeldOut) -> None:
        self.model = model
        self.work: list[Batch] = list(batches(held_out, BATCH_TOKENS))
        self.base = BaseLogits(lambda: model, self.work, EvaluationParams().base_logits_bytes)
        documents, self.document_of_sample = documents_of(held_out)
        self.documents = len(documents.names)
        with one_thread():  # as the quantized models, whatever the number of cores
            for index in range(len(self.work)):
                self.base[index]

    def __call__(self, given: _Given, scheme: SchemeParams, factors: Factors) -> Measured:
        quantized = quantize_model(self.model, given.totals, scheme, given.samples, factors)
        tokens, sample_of_token = measure(self.base, simulate(self.model, quantized, scheme), self.work)
        of_token = self.document_of_sample[sample_of_token]
        return Measured(
            kl=np.bincount(of_token, weights=tokens.kl, minlength=self.documents),
            agree=int(tokens.agree.sum()),
            samples=len(given.samples),
            tokens=sum(len(ids) for _, ids in given.samples),
            set_digest=given.set_digest,
            fallbacks=sum(layer.fallback is not None for layer in quantized.layers.values()),
        )
