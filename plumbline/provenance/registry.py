"""The link to the registry: the versions of the model and their runs agree with its record and with dvc.lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from plumbline.provenance.decision_links import EVALUATIONS, artifact_json, metrics_of, pair_of
from plumbline.provenance.link import Case, Link, dig
from plumbline.tracking.figures import evaluation_metrics, representativeness_metrics
from plumbline.tracking.model_version import EVALUATION, MODEL, RESTS_ON, ModelVersion
from plumbline.tracking.reading import RunData
from plumbline.tracking.run import STAGE, metric_names, prefixed
from plumbline.tracking.store import TrackingError
from plumbline.versioning.code import code_version
from plumbline.versioning.lock import Entry

TAGS = {
    "hash.calibration_set": ("calibration_set", "digest"),
    "hash.statistics": ("statistics", "digest"),
    "hash.base_model": ("base_model", "digest"),
    "hash.tokenizer_fingerprint": ("fingerprint",),
}
"""Tags of a registered version and of its run -> keys of the same value in the model's record."""
LONGEST_PARAMETER = 6000
"""MLflow cuts longer values."""
FIX = "find out who changed the folder or the registry; `plumbline log` has the history of champions"


def registry(case: Case) -> Link | None:
    """Check every registered version of the model.

    None if none is registered here.
    """
    name = "registry"
    try:
        versions = case.versions
        wrong = [f"{version.shown}: {what}" for version in versions for what in _contradictions(case, version)]
    except TrackingError as error:
        return Link(name, "missing", str(error), fix="start MLflow, or correct tracking.uri in params.yaml")
    if not versions:
        return None
    first = case.version or versions[-1]
    if wrong:
        return Link(name, "tampered", "; ".join(wrong[:4]), first.model, case.digest, FIX)
    shown = ", ".join(version.shown for version in versions)
    verb = "is" if len(versions) == 1 else "are"
    meaning = f"{shown} {verb} this folder; tags, parameters and metrics agree with its record and its evaluation"
    return Link(name, "verified", meaning, first.model, case.identity)


def _contradictions(case: Case, version: ModelVersion) -> Iterator[str]:
    if case.identity != version.model:
        yield "the folder is not the registered one"
    pair = pair_of(case)
    if case.record_holds and (version.pair, version.path) != (pair, f"data/quantized_model/{pair}"):
        yield f"its pair or path is not that of {pair}"
    yield from _other_hashes(case, version.tags)
    set_path = f"data/calibration_set/{dig(case.record, 'calibration_set', 'choice', 'name')}"
    made = case.history.makers(case.identity, f"data/quantized_model/{pair}") if case.identity else []
    read = {entry.deps[set_path] for entry in made if set_path in entry.deps}
    if read and version.calibration_set not in read:
        yield "its tag calibration.md5 names another calibration set than the model was made from"
    yield from _rests_on(case, version, pair, set_path)
    yield from _run(case, version, pair, set_path, made)


def _other_hashes(case: Case, tags: Mapping[str, str], of: str = "its") -> Iterator[str]:
    for tag, keys in TAGS.items():
        claims = case.claims(*keys)
        if claims and tag not in tags:
            yield f"{of} tag {tag} is missing"
        elif claims and tags[tag] not in claims:
            yield f"{of} tag {tag} differs from the model's record"


def _rests_on(case: Case, version: ModelVersion, pair: str, set_path: str) -> Iterator[str]:
    """Where the artifacts that the version names are not what recorded runs read and wrote."""
    if RESTS_ON not in version.tags:
        yield f"its tag {RESTS_ON} is missing"
        return
    try:
        chain = json.loads(version.tags[RESTS_ON])
        hashes = {str(path): str(md5) for path, md5 in chain.items()}
    except (ValueError, RecursionError, AttributeError):
        yield f"its tag {RESTS_ON} is not a JSON object"
        return
    same = {
        f"data/quantized_model/{pair}": version.model,
        f"{EVALUATIONS}/{pair}": version.evaluation,
        set_path: version.calibration_set,
    }
    for path, md5 in same.items():
        if hashes.get(path) != md5:
            yield f"its tags disagree on {path}"
    for path, md5 in hashes.items():
        runs = case.history.makers(md5, path)
        if runs and not any(_agrees(run, hashes) for run in runs):
            yield f"no run on record made {path} from what its tag {RESTS_ON} names"
        elif not runs and case.recorded(path) is not None and case.history.has_runs:
            yield f"no run on record made the {path} that its tag {RESTS_ON} names"


def _agrees(run: Entry, hashes: Mapping[str, str]) -> bool:
    return all(hashes.get(path, md5) == md5 for path, md5 in run.deps.items())


# ---------------------------------------------------------------------------------------------------------------------
# The run of the evaluation


def _run(case: Case, version: ModelVersion, pair: str, set_path: str, made: list[Entry]) -> Iterator[str]:
    assert case.registry is not None
    run = case.registry.reader.run(version.run_id) if version.run_id else None
    if run is None:
        yield "the run that evaluated it does not exist"
        return
    identity = {STAGE: f"evaluation@{pair}", EVALUATION: version.evaluation, MODEL: version.model}
    for key, value in identity.items():
        if run.tags.get(key) != value:
            yield f"its run has another {key}"
    yield from _other_hashes(case, run.tags, "its run's")
    if not case.record_holds:
        return
    yield from _other_parameters(case, run, made)
    expected = _expected_metrics(case, version, set_path)
    same_code = run.tags.get("code_version") == code_version("evaluation")
    for key, figure in expected.items():
        if key in run.metrics and run.metrics[key] != figure:
            yield f"its metric {key} is {run.metrics[key]:.6g}, the evaluation has {figure:.6g}"
        elif key not in run.metrics and same_code:  # another version may have named it otherwise
            yield f"its metric {key} is missing"


def _other_parameters(case: Case, run: RunData, made: list[Entry]) -> Iterator[str]:
    scheme = str(dig(case.record, "scheme", "name"))
    schemes = [entry.params[f"schemes.{scheme}"] for entry in made if f"schemes.{scheme}" in entry.params]
    choice = prefixed("choice", dig(case.record, "calibration_set", "choice") or {})
    possible = [{**choice, **prefixed("scheme", given)} for given in schemes] or [choice]
    found = {key: value for key, value in run.params.items() if key.split(".")[0] in ("choice", "scheme")}
    if not schemes:
        found = {key: value for key, value in found.items() if key.startswith("choice.")}
    cut = [{key: value[:LONGEST_PARAMETER] for key, value in params.items()} for params in possible]
    if found not in cut:
        other = sorted(key for key in {*found, *cut[-1]} if found.get(key) != cut[-1].get(key))
        yield f"its parameters {', '.join(other[:4])} are not those of the model"


def _expected_metrics(case: Case, version: ModelVersion, set_path: str) -> dict[str, float]:
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
