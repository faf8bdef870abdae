"""The link to dvc.lock: its entries agree with the runs that DVC recorded, with each other and with the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from plumbline.provenance.link import Case, Link, Status, dig
from plumbline.versioning.lock import Entry
from plumbline.versioning.run_history import ARTIFACT

INPUTS = {
    "quantized_model": ("data/calibration_set/", "data/activation_stats/"),
    "activation_stats": ("data/calibration_set/",),
    "calibration_set": ("data/tokenized_samples",),
    "tokenized_samples": ("data/raw_corpus",),
    "evaluation": ("data/quantized_model/", "data/tokenized_samples"),
}
"""Stage -> what it cannot have run without."""
FIX = "git checkout dvc.lock (or `plumbline run`, which makes anew what was not made by the stages on record)"


def dvc_lock(case: Case) -> Link | None:
    """Check the runs on record that lead to the model.

    None if DVC knows nothing of the model, which the link `model folder` says.
    """
    name = "dvc.lock"
    if not case.runs:
        if not case.digest or not case.lock or not case.in_cache:
            return None
        meaning = "no run on record made this model: neither dvc.lock, nor DVC's run cache, nor git's history has one"
        return Link(name, "missing", meaning, fix="git fetch, or copy .dvc/cache/runs from where it was made")
    runs = {**case.runs, **_later(case)}
    forged = [*_not_as_run(case, runs), *_without_inputs(runs), *_against_the_record(case)]
    unknown = [] if forged else [*_dropped(case, runs), *_unrecorded(case)]
    if not forged and not unknown:
        witness = "as DVC recorded the runs" if case.history.has_runs else "which agree with the model's record"
        return Link(name, "verified", f"{len(runs)} stages up to the model and after it, {witness}")
    status: Status = "tampered" if forged else "missing"
    return Link(name, status, "; ".join((forged or unknown)[:3]), fix=FIX)


def _later(case: Case) -> dict[str, Entry]:
    """The current entries of what was made from the model: its evaluation, the report and the decision."""
    entries = {}
    for entry in case.lock.values():
        of_model = entry.asset == "evaluation" and case.identity in entry.deps.values()
        if of_model or entry.asset in ("calibration_report", "deployed_model"):
            entries[next(iter(entry.outs), entry.name)] = entry
    return entries


def _not_as_run(case: Case, paths: Iterable[str]) -> Iterator[str]:
    """Entries of dvc.lock that contradict every recorded run of the same output or of the same inputs."""
    for path in paths:
        entry = next((entry for entry in case.lock.values() if path in entry.outs), None)
        witnesses = case.history.witnesses(path) if entry is not None else []
        if entry is None or entry in witnesses:
            continue
        same_output = [run for run in witnesses if run.outs == entry.outs]
        same_inputs = [run for run in witnesses if run.outs != entry.outs and _inputs(run) == _inputs(entry)]
        if not (same_output or same_inputs) or case.history.committed(entry):
            continue
        if same_output:
            yield f"{entry.name} was run with {_difference(entry, same_output[-1])}"
        else:
            md5 = same_inputs[-1].outs.get(path, "another output")
            yield f"{entry.name} gave {md5}, dvc.lock has {entry.outs[path]}"


def _inputs(entry: Entry) -> tuple[Any, ...]:
    return entry.cmd, entry.deps, entry.params, entry.code_version


def _difference(entry: Entry, run: Entry) -> str:
    """What the run had where dvc.lock has something else."""
    for what, ours, theirs in (("", entry.params, run.params), ("", entry.deps, run.deps)):
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return f"{what}{key} {theirs.get(key)}, dvc.lock has {ours.get(key)}"
    if entry.code_version != run.code_version:
        return f"code version {run.code_version}, dvc.lock has {entry.code_version}"
    return f"the command {run.cmd!r}, dvc.lock has {entry.cmd!r}"


def _without_inputs(runs: dict[str, Entry]) -> Iterator[str]:
    for entry in runs.values():
        for needed in INPUTS.get(entry.asset, ()):
            if not any(dep == needed or (needed.endswith("/") and dep.startswith(needed)) for dep in entry.deps):
                yield f"{entry.name} is said to have read no {needed.rstrip('/')}"


def _dropped(case: Case, runs: dict[str, Entry]) -> Iterator[str]:
    """Artifacts that are in the workspace while dvc.lock has no entry for them."""
    read = {dep: None for entry in runs.values() for dep in entry.deps if ARTIFACT.fullmatch(dep)}
    partitioned = {path.rsplit("/", 1)[0] for path in runs if path.count("/") > 1}
    for path in {**read, **dict.fromkeys(runs)}.keys() - partitioned:
        if case.recorded(path) is None and (case.root / path).exists():
            yield f"dvc.lock has no entry for {path}, which is in the workspace"


def _unrecorded(case: Case) -> list[str]:
    """Inputs upstream of the model that no run on record made."""
    made = {(path, md5) for path, entry in case.runs.items() for path, md5 in entry.outs.items()}
    return [
        f"{entry.name} read {dep} {md5}, which no run on record made"
        for entry in case.runs.values()
        for dep, md5 in entry.deps.items()
        if ARTIFACT.fullmatch(dep) and (dep, md5) not in made
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The parameters of the runs against the model's record


def _against_the_record(case: Case) -> Iterator[str]:
    """Parameters on record that are not those that the model names."""
    if not case.record_holds:
        return
    record = case.record
    for path, entry in case.runs.items():
        if entry.asset == "quantized_model":
            yield from _other_scheme(entry, record)
            if entry.code_version and entry.code_version != record.get("code_version"):
                yield f"{entry.name}: code version {entry.code_version}, the model records {record.get('code_version')}"
        if entry.asset == "calibration_choice":
            yield from _other_choice(entry, path, record)
        if entry.asset == "tokenized_samples":
            yield from _other_tokenization(entry, record)
        named = dig(entry.params, "model", "name")
        base = dig(record, "base_model", "name")
        if isinstance(named, str) and base not in (named, named.rstrip("/").rsplit("/", 1)[-1]):
            yield f"{entry.name} ran with the base model {named}, the model records {base}"


def _other_scheme(entry: Entry, record: dict[str, Any]) -> Iterator[str]:
    from plumbline.quantized_model.params import SchemeParams

    recorded = dict(record.get("scheme") or {})
    key = f"schemes.{recorded.pop('name', '')}"
    if key not in entry.params:
        yield f"{entry.name} has no parameters {key}, the scheme that the model records"
        return
    given = entry.params[key]
    try:
        scheme = SchemeParams.model_validate(given).model_dump(mode="json")
    except (ValidationError, ValueError, TypeError):
        yield f"{entry.name}: {key} is not a scheme: {str(given)[:60]}"
        return
    # A later version may know more settings: compare those that the record has.
    if other := sorted(k for k in recorded if k in scheme and scheme[k] != recorded[k]):
        yield f"{entry.name}: {key} has other {', '.join(other)} than the model's record"


def _other_choice(entry: Entry, path: str, record: dict[str, Any]) -> Iterator[str]:
    from plumbline.calibration_choice.choice import resolve

    choice = dig(record, "calibration_set", "choice") or {}
    name = path.rsplit("/", 1)[-1]
    key = f"calibrations.{name}"
    if key not in entry.params:
        yield f"{entry.name} has no parameters {key}"
        return
    given = entry.params[key]
    known = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else {}
    try:
        resolved = resolve(name, known)
    except ValueError:  # a strategy of a package that is not installed here, or no choice at all
        resolved = known
    if other := sorted(k for k in resolved if k in choice and resolved[k] != choice[k]):
        yield f"{entry.name}: {key} has other {', '.join(other)} than the model's record"


def _other_tokenization(entry: Entry, record: dict[str, Any]) -> Iterator[str]:
    from plumbline.tokenized_samples.fingerprint import POLICY
    from plumbline.tokenized_samples.params import TokenizeParams

    parts, given = record.get("fingerprint_parts"), entry.params.get("tokenize")
    if not isinstance(parts, dict) or given is None:
        return
    try:
        settings = TokenizeParams.model_validate(given).model_dump()
    except (ValidationError, ValueError, TypeError):
        settings = {}
    if other := sorted(key for key in POLICY if key in parts and settings.get(key) != parts[key]):
        yield f"{entry.name} ran with other {', '.join(other)} than the model's record"
