"""The link to the registry: the versions of the model and their runs agree with its record and with dvc.lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from plumbline.provenance.decision_links import EVALUATIONS, pair_of
from plumbline.provenance.link import Case, Link, dig
from plumbline.provenance.registry_model import wrong_model
from plumbline.provenance.registry_run import expected_metrics, wrong_run
from plumbline.provenance.registry_text import wrong_text
from plumbline.tracking.details import Details, details_reader
from plumbline.tracking.model_version import RESTS_ON, ModelVersion
from plumbline.tracking.registry import Registry
from plumbline.tracking.store import TrackingError
from plumbline.versioning.lock import Entry

TAGS = {
    "hash.calibration_set": ("calibration_set", "digest"),
    "hash.statistics": ("statistics", "digest"),
    "hash.base_model": ("base_model", "digest"),
    "hash.tokenizer_fingerprint": ("fingerprint",),
}
"""Tags of a registered version and of its run -> keys of the same value in the model's record."""
ANSWER = "start MLflow, correct tracking.uri in params.yaml, or restore mlflow.db"
FIX = "find out who changed the folder or the registry; `plumbline log` has the history of champions"


def registry(case: Case) -> Link | None:
    """Check every registered version of the model.

    None if none is registered here.
    """
    name = "registry"
    try:
        versions = case.versions
        wrong = _wrong(case, case.registry, versions) if case.registry and versions else []
    except TrackingError as error:
        return Link(name, "missing", str(error), fix=ANSWER)
    if not versions:
        return None
    first = case.version or versions[-1]
    if wrong:
        return Link(name, "tampered", "; ".join(wrong[:4]), first.model, case.digest, FIX)
    shown = ", ".join(version.shown for version in versions)
    verb = "is" if len(versions) == 1 else "are"
    meaning = f"{shown} {verb} this folder; tags, parameters and metrics agree with its record and its evaluation"
    return Link(name, "verified", meaning, first.model, case.identity)


def _wrong(case: Case, registered: Registry, versions: list[ModelVersion]) -> list[str]:
    store = details_reader(registered.reader)
    return [f"{version.shown}: {what}" for version in versions for what in _contradictions(case, store, version)]


def _contradictions(case: Case, store: Details, version: ModelVersion) -> Iterator[str]:
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
    yield from wrong_model(case, store, version)
    run = case.registry.reader.run(version.run_id) if case.registry and version.run_id else None
    if run is None:
        yield "the run that evaluated it does not exist"
        return
    yield from _other_hashes(case, run.tags, "its run's")
    yield from wrong_run(case, store, version, run, set_path, made)
    shown = store.version(version.name, version.version)
    if case.record_holds and shown is not None:
        metrics = expected_metrics(case, version, set_path)
        yield from (f"its description has another {name}" for name in wrong_text(case, shown.description, metrics))


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
