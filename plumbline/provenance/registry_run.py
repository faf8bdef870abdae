"""The run of an evaluation in MLflow: what its page states and keeps agrees with the record and the evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from plumbline.provenance.decision_links import artifact_json, metrics_of, pair_of
from plumbline.provenance.link import Case, dig
from plumbline.provenance.registry_model import LOGGED, here, within
from plumbline.provenance.registry_text import wrong_text
from plumbline.tracking.details import Details, RunDetails
from plumbline.tracking.figures import evaluation_metrics, evaluation_tables, representativeness_metrics
from plumbline.tracking.model_version import EVALUATION, MODEL, ModelVersion
from plumbline.tracking.reading import RunData
from plumbline.tracking.run import STAGE, metric_names, prefixed
from plumbline.tracking.view import NOTE
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.code import code_version
from plumbline.versioning.lock import Entry

LONGEST_PARAMETER = 6000
"""MLflow cuts longer values."""


def wrong_run(
    case: Case, store: Details, version: ModelVersion, run: RunData, set_path: str, made: list[Entry]
) -> Iterator[str]:
    """Where the run of a version contradicts the model's record, its evaluation or its calibration set."""
    pair = pair_of(case)
    identity = {STAGE: f"evaluation@{pair}", EVALUATION: version.evaluation, MODEL: version.model}
    names = {"calibration": set_path.rsplit("/", 1)[-1], "scheme": str(dig(case.record, "scheme", "name"))}
    names["model_path"] = f"data/quantized_model/{pair}"
    for key, value in identity.items():
        if run.tags.get(key) != value:
            yield f"its run has another {key}"
    details = store.run(version.run_id)
    if details is not None:
        yield from _wrong_details(case, store, version, details, set_path)
    if not case.record_holds:
        return
    for key, value in names.items():
        if run.tags.get(key, value) != value:
            yield f"its run has another {key}"
    yield from _other_parameters(case, run, made)
    metrics = expected_metrics(case, version, set_path)
    same_code = run.tags.get("code_version") == code_version("evaluation")
    yield from _other_metrics(run, details, metrics, same_code)
    yield from (f"the description of its run has another {name}" for name in wrong_text(case, _note(run), metrics))
    shown = store.version(version.name, version.version)
    source = LOGGED.fullmatch(shown.source) if shown else None
    logged = store.logged_model(source[1]) if source else None
    for key, figure in metrics.items() if logged is not None else ():
        if logged is not None and logged.metrics.get(key, figure) != figure:
            yield f"the metric {key} of its logged model is {logged.metrics[key]:.6g}, the evaluation has {figure:.6g}"
    if details is not None and same_code:
        yield from _other_tables(case, version, details, set_path)


def expected_metrics(case: Case, version: ModelVersion, set_path: str) -> dict[str, float]:
    """The metrics that the evaluation and the set of the version give; without those that are not here."""
    expected: dict[str, Any] = {}
    content = metrics_of(case, version.evaluation)
    if content is not None:
        expected |= evaluation_metrics(content)
    measured = artifact_json(case, set_path, version.calibration_set, "representativeness.json")
    if measured is not None:
        expected |= representativeness_metrics(measured)
    manifest = artifact_json(case, set_path, version.calibration_set, "manifest.json")
    if manifest is not None:
        expected |= {f"count/{key}": manifest[key] for key in ("samples", "tokens")}
    return metric_names(expected)


def _note(run: RunData) -> str:
    return str(run.tags.get(NOTE, ""))


def _wrong_details(case: Case, store: Details, version: ModelVersion, run: RunDetails, set_path: str) -> Iterator[str]:
    if run.deleted:
        yield "its run was deleted in MLflow"
    if not within(run.location, run.experiment_location, version.run_id):
        yield f"the files of its run are at {run.location[:120]}, outside its experiment"
    inputs = [(one.name, one.digest, one.path, one.context) for one in run.datasets]
    choice = set_path.rsplit("/", 1)[-1]
    if case.record_holds and inputs != [(choice, version.calibration_set, set_path, "calibration")]:
        other = ", ".join(f"{one.name} {one.digest}" for one in run.datasets)
        yield f"its run names the dataset {other[:160] or 'of none'}, not its calibration set"
    shown = store.version(version.name, version.version)
    source = LOGGED.fullmatch(shown.source) if shown else None
    if source and source[1] not in run.models:
        yield "its run names another logged model as its output"
    folder = here(case, run.location, run.experiment_location)
    if folder is None:
        return
    recorded = set((cached_listing(case.root, version.evaluation) or {}).values())
    for path in sorted((folder / "plots").glob("*")) if recorded else ():
        if not path.is_file() or case.hasher.file(path) not in recorded:
            yield f"the plot {path.name} of its run is not one of its evaluation"


def _other_parameters(case: Case, run: RunData, made: list[Entry]) -> Iterator[str]:
    scheme = str(dig(case.record, "scheme", "name"))
    schemes = [entry.params[f"schemes.{scheme}"] for entry in made if f"schemes.{scheme}" in entry.params]
    choice = prefixed("choice", dig(case.record, "calibration_set", "choice") or {})
    possible = [{**choice, **prefixed("scheme", given)} for given in schemes] or [choice]
    found = {key: value for key, value in run.params.items() if key.split(".")[0] in ("choice", "scheme")}
    if not schemes:
        found = {key: value for key, value in found.items() if key.startswith("choice.")}
    cut = [{key: value[:LONGEST_PARAMETER] for key, value in params.items()} for params in possible]
    base = prefixed("base_model", dig(case.record, "base_model") or {})
    other = [key for key in base if run.params.get(key, base[key]) != base[key][:LONGEST_PARAMETER]]
    if found not in cut:
        other += sorted(key for key in {*found, *cut[-1]} if found.get(key) != cut[-1].get(key))
    if other:
        yield f"its parameters {', '.join(other[:4])} are not those of the model"


def _other_metrics(
    run: RunData, details: RunDetails | None, expected: dict[str, float], same_code: bool
) -> Iterator[str]:
    logged = details.logged if details is not None else {}
    for key, figure in expected.items():
        values = {run.metrics[key], *logged.get(key, ())} if key in run.metrics else logged.get(key, set())
        if other := [value for value in values if value != figure]:
            yield f"its metric {key} is {other[0]:.6g}, the evaluation has {figure:.6g}"
        elif key not in run.metrics and same_code:  # another version may have named it otherwise
            yield f"its metric {key} is missing"


def _other_tables(case: Case, version: ModelVersion, run: RunDetails, set_path: str) -> Iterator[str]:
    """Tables among the files of the run, on this machine, that are not what the evaluation gives."""
    folder = here(case, run.location, run.experiment_location)
    metrics = metrics_of(case, version.evaluation)
    measured = artifact_json(case, set_path, version.calibration_set, "representativeness.json")
    if folder is None or metrics is None or measured is None:
        return
    for name, table in evaluation_tables(metrics, measured).items():
        path, content = folder / name, asdict(table)
        if not path.is_file():
            continue
        expected = json.loads(json.dumps({"columns": list(content["columns"]), "data": content["rows"]}))
        found = None
        with suppress(ValueError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        if found != expected:
            yield f"the table {name} of its run is not that of its evaluation"
