"""study: reads samples, features and the base model; writes verdict.json, documents.parquet, study.html and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plumbline.activation_stats.params import StatisticsParams
from plumbline.artifact import sha256_files, sha256_json, write_json, write_table
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.representativeness.null import rounded as nine_digits
from plumbline.calibration_set.strategies.base import sample_id
from plumbline.evaluation.held_out import HeldOut, choose
from plumbline.evaluation.params import EvaluationParams
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import shares_out
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import quantizable_matrices
from plumbline.study.distances import measure_distances
from plumbline.study.draws import Cell, Plan
from plumbline.study.measuring import documents_of, measure_cells
from plumbline.study.page import render
from plumbline.study.params import StudyParams
from plumbline.study.plot import CURVE, DIFFERENCE, DOMAINS, plot_curve, plot_differences, plot_domains
from plumbline.study.result_cache import Documents, Measured, ResultCache
from plumbline.study.sharing import measure_by_workers
from plumbline.study.verdict import Evidence, judge


def build_study(
    params: StudyParams,
    schemes: Mapping[str, SchemeParams],
    settings: StatisticsParams,
    sources: Sources,
    scratch: Path,
    made_by: Mapping[str, str],
    out: Path,
    name: str = "",
    execution: ExecutionParams | None = None,
) -> None:
    """Compare rules of choosing over many paired draws.

    Args:
        params: what to compare.
        schemes: those of `params.schemes` by name, in order.
        settings: `statistics:`.
        sources: samples, features and base model.
        scratch: folder for single results, from which a killed study goes on.
        made_by: what else decides a single result: digests of code and inputs.
        name: of the study in params.yaml.
        execution: who measures; None: this process.
        out: existing empty folder; gets verdict.json, documents.parquet, study.html and three plots.

    Raises:
        ValueError: a rule cannot choose, too few documents, or whatever quantizing and evaluating refuse.
    """
    held_out = evaluated(sources.samples, params)
    about = {
        "base model": sources.base.digest(),
        "tokenization": sources.fingerprint,
        "held-out samples": sha256_json([sample_id(ids.astype(np.int32)) for ids in held_out.tokens]),
    }
    cache = ResultCache(scratch, {**about, "made by": dict(made_by), "statistics": settings.model_dump(mode="json")})
    plan = Plan(params, sources, held_out)
    if execution is not None and shares_out(execution):
        measure_by_workers(plan, schemes, settings, cache, execution)
    cells = measure_cells(plan, schemes, settings, cache)
    distances, why_not = measure_distances(plan, cache)
    documents, _ = documents_of(held_out)
    width = widest_layer(sources, schemes.values())
    verdict = judge(Evidence(cells, documents, width, plan.absent, distances, why_not), params, schemes)
    base_model = {**sources.base.origin(), "digest": about["base model"]}
    verdict = {**rounded(verdict), "digests": about, "base_model": base_model}
    write_json(out / "verdict.json", verdict)
    write_table(out / "documents.parquet", _table(cells, documents))
    plot_differences(verdict, out / DIFFERENCE)
    plot_curve(verdict, out / CURVE)
    plot_domains(verdict, out / DOMAINS)
    results = sha256_files(out, ("documents.parquet", "verdict.json"))
    (out / "study.html").write_text(render(verdict, about, made_by, results, name), encoding="utf-8")


def evaluated(samples: Path, params: StudyParams) -> HeldOut:
    """What the study evaluates: documents of the report split, each by one window or its first tokens."""
    each = EvaluationParams().samples_per_document
    return choose(samples, params.tokens_per_domain, each, tokens_per_sample=params.tokens_per_document)


def widest_layer(sources: Sources, schemes: Iterable[SchemeParams]) -> int:
    """Input channels of the widest layer that any of the schemes quantizes; no weight is read."""
    model = sources.base.streamed("cpu").model
    return max(linear.in_features for scheme in schemes for linear in quantizable_matrices(model, scheme).values())


def rounded(value: Any) -> Any:
    """A JSON value with its numbers to nine digits: processors differ in the last bits."""
    if isinstance(value, float):
        return nine_digits(value)
    if isinstance(value, Mapping):
        return {key: rounded(of) for key, of in value.items()}
    return [rounded(of) for of in value] if isinstance(value, list | tuple) else value


def _table(found: Mapping[tuple[Cell, str], Measured], documents: Documents) -> pa.Table:
    """A row per model and document: what the statistics were computed from."""
    count = len(documents.names)
    models = list(found)
    return pa.table(
        {
            "scheme": np.repeat([scheme for _, scheme in models], count).tolist(),
            "n": np.repeat([cell.n for cell, _ in models], count),
            "rule": np.repeat([cell.rule for cell, _ in models], count).tolist(),
            "draw": np.repeat([cell.draw for cell, _ in models], count),
            "doc_id": documents.names * len(models),
            "domain": documents.domains * len(models),
            "n_tokens": np.tile(documents.tokens, len(models)),
            "kl_sum": np.concatenate([result.kl for result in found.values()]),
        }
    )
