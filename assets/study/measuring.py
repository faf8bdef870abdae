"""Every set of a study quantized and evaluated, sharing what can be shared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from assets.activation_stats.histogram import n_buckets
from assets.activation_stats.params import StatisticsParams
from assets.activation_stats.together import SetTotals, collect_together, hessian_bytes
from assets.base_model.inputs import linear_layers
from assets.calibration_set.pool import Sources
from assets.calibration_set.reader import set_digest
from assets.evaluation.base_logits import BaseLogits
from assets.evaluation.held_out import Batch, HeldOut, batches
from assets.evaluation.measure import measure
from assets.evaluation.params import EvaluationParams
from assets.quantized_model.params import SchemeParams
from assets.quantized_model.quantize import Samples, quantize_model
from assets.quantized_model.simulate import simulate
from assets.study.draws import Cell, asked_of, cells, draw_set, sub_pool
from assets.study.kept import Documents, Kept, Measured
from assets.study.params import StudyParams

BATCH_TOKENS = EvaluationParams().batch_tokens


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
    params: StudyParams,
    schemes: Mapping[str, SchemeParams],
    settings: StatisticsParams,
    sources: Sources,
    held_out: HeldOut,
    kept: Kept,
) -> dict[tuple[Cell, str], Measured]:
    """What every set of the study makes of the model under every scheme; what is kept already is not done again.

    Loaded or computed once: the base model, its answers on the held-out documents, and the forward pass over a sample
    of the pool for all sets that are kept in memory together. Nothing is written but results: the quantized model is
    simulated, which gives the logits of the exported one bit for bit.

    Args:
        schemes: by name, in order.
        settings: `statistics:`.
        sources: samples, features and base model.
        held_out: the samples to evaluate on.
        kept: where results are kept.

    Returns:
        A result per set and scheme.

    Raises:
        ValueError: a rule cannot choose, or the model cannot be quantized or evaluated, or the settings ask for what
            reading many sets at once does not do.
    """
    histogram = any("histogram" in scheme.reads for scheme in schemes.values())
    mantissa_bits = settings.mantissa_bits if histogram else None
    _require_read_together(settings, histogram)
    asked = {
        cell: asked_of(cell.rule, params.rules[cell.rule], cell.n, params.seed + cell.draw) for cell in cells(params)
    }

    def identity(cell: Cell, scheme: str) -> dict[str, Any]:
        choice = {key: value for key, value in asked[cell].items() if key != "name"}
        return {"choice": choice, "share": params.share, "scheme": schemes[scheme].model_dump(mode="json")}

    found = {
        (cell, scheme): result
        for cell in asked
        for scheme in schemes
        if (result := kept.find(**identity(cell, scheme))) is not None
    }
    todo = [cell for cell in asked if any((cell, scheme) not in found for scheme in schemes)]
    total = sum(cell.n for cell in asked)
    with tqdm(total=total, desc="study", unit="sample", disable=None) as bar:
        bar.update(total - sum(cell.n for cell in todo))
        if todo:
            model = sources.load_model()
            evaluate = _Evaluator(model, held_out)
            at_once = max(1, params.statistics_bytes // _bytes_of_set(model, settings, mantissa_bits))
            for part in _parts(todo, at_once):
                bits = settings.mantissa_bits if histogram else None
                for cell, totals, samples, about in _statistics(
                    part, asked, params, sources, model, settings, bits, bar
                ):
                    for name, scheme in schemes.items():
                        if (cell, name) not in found:
                            result = dataclasses.replace(evaluate(totals, scheme, samples), **about)
                            kept.keep(result, **identity(cell, name))
                            found[cell, name] = result
    return {(cell, scheme): found[cell, scheme] for cell in asked for scheme in schemes}


def _parts(todo: Sequence[Cell], at_once: int) -> Iterator[list[Cell]]:
    """Cells in as few parts as fit, of nearly equal size, draw after draw."""
    count = -(-len(todo) // at_once)
    edges = [len(todo) * part // count for part in range(count + 1)]
    return (list(todo[start:stop]) for start, stop in pairwise(edges))


def _statistics(
    part: Sequence[Cell],
    asked: Mapping[Cell, Mapping[str, Any]],
    params: StudyParams,
    sources: Sources,
    model: PreTrainedModel,
    settings: StatisticsParams,
    mantissa_bits: int | None,
    bar: tqdm,
) -> Iterator[tuple[Cell, SetTotals, Samples, dict[str, Any]]]:
    """The sets of some cells, chosen and read together: per cell its statistics, its samples in order of their id and
    what to say about the set."""
    whole = sources.pool()
    tokens: dict[str, list[int]] = {}
    sets: list[list[str]] = []
    for cell in part:
        drawn = draw_set(sub_pool(whole, params.share, params.seed + cell.draw), asked[cell])
        names = drawn["sample_id"].to_pylist()
        tokens |= dict(zip(names, drawn["input_ids"].to_pylist(), strict=True))
        sets.append(names)
    together = collect_together(
        model,
        tokens,
        sets,
        settings.ignore,
        bar.update,
        normalization=settings.normalization,
        mantissa_bits=mantissa_bits,
    )
    for cell, names, totals in zip(part, sets, together, strict=True):
        about = {
            "samples": len(names),
            "tokens": sum(len(tokens[name]) for name in names),
            "set_digest": set_digest(names, sources.fingerprint),
        }
        yield cell, totals, [(name, tokens[name]) for name in sorted(names)], about


def _bytes_of_set(model: PreTrainedModel, settings: StatisticsParams, mantissa_bits: int | None) -> int:
    """What the statistics of a set take, were every layer a site of its own."""
    if mantissa_bits is None:
        return hessian_bytes(model, settings.ignore)
    layers = linear_layers(model, settings.ignore).values()
    widths = (max(weight.shape) for layer in layers if isinstance(weight := layer.weight, Tensor))
    return hessian_bytes(model, settings.ignore) + 4 * sum(widths) * n_buckets(mantissa_bits)


def _require_read_together(settings: StatisticsParams, histogram: bool) -> None:
    if settings.tokens != "all":
        raise ValueError(
            f"statistics.tokens: {settings.tokens}: a study counts all tokens; write tokens: all in params.yaml"
        )
    if histogram and settings.histogram_share != 1:
        raise ValueError(
            f"statistics.histogram_share: {settings.histogram_share:g}: a study's histograms count all tokens; "
            "write histogram_share: 1, or study schemes with activations: {range: minmax}"
        )


class _Evaluator:
    """Quantizes the model from statistics and holds it against the base model, whose answers are computed once."""

    def __init__(self, model: PreTrainedModel, held_out: HeldOut) -> None:
        self.model = model
        self.work: list[Batch] = list(batches(held_out, BATCH_TOKENS))
        self.base = BaseLogits(lambda: model, self.work, EvaluationParams().base_logits_bytes)
        documents, self.document_of_sample = documents_of(held_out)
        self.documents = len(documents.names)

    def __call__(self, totals: SetTotals, scheme: SchemeParams, samples: Samples) -> Measured:
        quantized = quantize_model(self.model, totals, scheme, samples)
        tokens, sample_of_token = measure(self.base, simulate(self.model, quantized, scheme), self.work)
        of_token = self.document_of_sample[sample_of_token]
        kl = np.bincount(of_token, weights=tokens.kl, minlength=self.documents)
        fallbacks = sum(layer.fallback is not None for layer in quantized.layers.values())
        return Measured(kl, int(tokens.agree.sum()), 0, 0, "", fallbacks)
