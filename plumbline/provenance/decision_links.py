"""The links to what the model was judged by: its evaluation, and the decision to promote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from plumbline.artifact import sha256_file
from plumbline.provenance.data_links import file_in
from plumbline.provenance.link import Case, Link, Status, dig, how_to_restore
from plumbline.provenance.model_files import parse_object, read_object
from plumbline.versioning.cache import cached_bytes, cached_listing
from plumbline.versioning.digest import differences, dvc_digest

EVALUATIONS, DECISION, REPORT = "data/evaluation", "data/deployed_model", "data/calibration_report"
REPEATED = {
    "weights": ("model",),
    "fingerprint": ("fingerprint",),
    "base_model": ("base_model", "digest"),
    "calibration_set": ("calibration_set", "digest"),
    "scheme": ("scheme",),
    "fallbacks": ("fallbacks",),
}
"""Entries of metrics.json -> keys of the same value in the model's record."""


def pair_of(case: Case) -> str:
    """`CALIBRATION-SCHEME`, from the model's record."""
    names = (dig(case.record, "calibration_set", "choice", "name"), dig(case.record, "scheme", "name"))
    return "-".join(map(str, names))


def evaluation_path(case: Case) -> str:
    """Path of the model's evaluation in the workspace."""
    return f"{EVALUATIONS}/{pair_of(case)}"


def evaluation(case: Case) -> Link | None:
    """Check that the model's evaluation is the recorded one, and is of this model.

    None if no evaluation of this model is on record.
    """
    name, path = "evaluation", evaluation_path(case)
    known = {entry.outs[path] for entry in case.history.readers(case.identity, "evaluation") if path in entry.outs}
    known |= {version.evaluation for version in case.versions if version.evaluation}
    recorded = case.recorded(path)
    if not known:
        return None
    folder = case.root / path
    if folder.is_dir() and recorded in known:
        digest = dvc_digest(folder, case.hasher)
        if digest != recorded:
            before = cached_listing(case.root, str(recorded))
            what = differences(before, case.hasher.files(folder)) if before else ["it changed on disk"]
            meaning = f"{path} is not what dvc.lock records: {', '.join(what[:3])}"
            return Link(name, "tampered", meaning, str(recorded), digest, how_to_restore(case, path))
    wanted = str(recorded) if recorded in known else min(known)
    metrics = metrics_of(case, wanted)
    if metrics is None:
        meaning = f"neither the workspace nor DVC's cache has {path} of this model ({wanted})"
        return Link(name, "missing", meaning, wanted, "", f"dvc pull {path}, or plumbline run, which makes it again")
    if recorded is not None and recorded not in known and not _was_replaced(case, path):
        meaning = f"dvc.lock records an evaluation of another model under {path}"
        return Link(name, "tampered", meaning, wanted, recorded, "git checkout dvc.lock")
    if other := contradictions(case, metrics):
        meaning = f"metrics.json is of another model: {', '.join(other)} differ from the model's record"
        return Link(name, "tampered", meaning, wanted, "", how_to_restore(case, path))
    kl = metrics.get("kl_mean")
    shown = f"mean KL {kl:.4g}" if isinstance(kl, float) else "metrics.json"
    return Link(name, "verified", f"{path}: {shown}, of these weights, this scheme and this set", wanted, wanted)


def _was_replaced(case: Case, path: str) -> bool:
    """Whether dvc.lock has an evaluation of a later model at this path."""
    model = f"data/quantized_model/{path.rsplit('/', 1)[-1]}"
    entry = next((entry for entry in case.lock.values() if path in entry.outs), None)
    return entry is not None and entry.deps.get(model) not in (None, case.identity)


def metrics_of(case: Case, md5: str) -> dict[str, Any] | None:
    """metrics.json of the evaluation with this DVC hash; None if it is neither in the workspace nor in the cache."""
    return artifact_json(case, evaluation_path(case), md5, "metrics.json")


def artifact_json(case: Case, path: str, md5: str, file: str) -> dict[str, Any] | None:
    """A JSON file of the artifact with this DVC hash, from the workspace, else from DVC's cache; None without it."""
    with suppress(OSError, ValueError):
        if (case.root / path).is_dir() and dvc_digest(case.root / path, case.hasher) == md5:
            return read_object(file_in(case.root / path, file))
    with suppress(OSError, ValueError):
        listed = (cached_listing(case.root, md5) or {}).get(file, "")
        return parse_object(cached_bytes(case.root, listed) or b"", file)
    return None


def artifact_bytes(case: Case, path: str, md5: str, file: str) -> bytes | None:
    """A file of the artifact with this DVC hash, from the workspace, else from DVC's cache; None without it."""
    with suppress(OSError, ValueError):
        if (case.root / path).is_dir() and dvc_digest(case.root / path, case.hasher) == md5:
            return file_in(case.root / path, file).read_bytes()
    with suppress(OSError, ValueError):
        return cached_bytes(case.root, (cached_listing(case.root, md5) or {}).get(file, ""))
    return None


def contradictions(case: Case, metrics: Mapping[str, Any]) -> list[str]:
    """Entries of metrics.json that are not the model's."""
    if not case.record_holds:
        return []
    return [key for key, keys in REPEATED.items() if metrics.get(key) != dig(case.record, *keys)]


def promotion(case: Case) -> Link | None:
    """Check that the last decision and the report it rests on are the recorded ones; if it is on this model, that
    its figures are those of the evaluation.

    None if the workspace has no decision, or has lost it and this model is not the champion.
    """
    name, recorded = "promotion", case.recorded(DECISION)
    folder = case.root / DECISION
    if not folder.is_dir():
        held = "champion" in {alias for version in case.versions for alias in version.aliases}
        if recorded is None or (not held and artifact_json(case, DECISION, recorded, "promotion.json") is None):
            return None
        content = artifact_json(case, DECISION, recorded, "promotion.json")
        if content is None:
            return Link(name, "missing", f"{DECISION} does not exist", recorded, "", how_to_restore(case, DECISION))
    elif recorded is None:
        return None
    else:
        digest = dvc_digest(folder, case.hasher)
        if digest != recorded:
            meaning = f"{DECISION} is not what dvc.lock records: promotion.json changed"
            return Link(name, "tampered", meaning, recorded, digest, how_to_restore(case, DECISION))
        content = read_object(file_in(folder, "promotion.json"))
    problems = [*_report(case, content), *_candidate(case, content)]
    status: Status = "tampered" if problems else "verified"
    if problems:
        return Link(name, status, "; ".join(problems[:3]), recorded or "", "", how_to_restore(case, DECISION))
    about = "this model" if content.get("model") == case.identity else str(content.get("pair"))[:80]
    meaning = f"the last decision ({content.get('decision')}) is the recorded one; it is on {about}"
    return Link(name, status, meaning, recorded or "", recorded or "")


def _report(case: Case, content: Mapping[str, Any]) -> list[str]:
    """Where the report is not the one of the decision."""
    recorded, folder = case.recorded(REPORT), case.root / REPORT
    if recorded is None or not folder.is_dir():
        return []
    digest = dvc_digest(folder, case.hasher)
    if digest != recorded:
        before = cached_listing(case.root, recorded)
        what = differences(before, case.hasher.files(folder)) if before else ["it changed on disk"]
        return [f"{REPORT} is not what dvc.lock records: {', '.join(what[:3])}"]
    decided = next((entry for entry in case.lock.values() if DECISION in entry.outs), None)
    page = folder / "report.html"
    read = decided is not None and decided.deps.get(REPORT) == recorded and page.is_file()
    return (
        ["the decision names another report.html"] if read and sha256_file(page) != content.get("report_sha256") else []
    )


def _candidate(case: Case, content: Mapping[str, Any]) -> list[str]:
    """Where the decision contradicts the model or its evaluation; nothing if it is on another model."""
    if content.get("model") != case.identity or not case.record_holds:
        return []
    wrong = [
        f"its {key} is not the model's"
        for key, keys in REPEATED.items()
        if key in content and key != "scheme" and content[key] != dig(case.record, *keys)
    ]
    if content.get("pair") != pair_of(case):
        wrong.append(f"it names the pair {str(content.get('pair'))[:60]}")
    decided = next((entry for entry in case.lock.values() if DECISION in entry.outs), None)
    path = evaluation_path(case)
    metrics = metrics_of(case, case.recorded(path) or "")
    # After a later evaluation the decision is out of date, and its figures are those of the earlier one.
    read = decided.deps if decided is not None else {}
    # Records of earlier versions name the folder of all evaluations.
    current = read[path] == case.recorded(path) if path in read else read.get(EVALUATIONS) == _digest(case, EVALUATIONS)
    figures = content.get("figures")
    if current and metrics is not None and isinstance(figures, dict):
        wrong += [
            f"its figure {key} is not that of metrics.json" for key in figures if figures[key] != metrics.get(key)
        ]
    return wrong


def _digest(case: Case, path: str) -> str:
    with suppress(OSError, ValueError):
        return dvc_digest(case.root / path, case.hasher)
    return ""


def decision_of(case: Case) -> dict[str, Any]:
    """promotion.json of the workspace as it is; empty if it cannot be read."""
    with suppress(OSError, ValueError, json.JSONDecodeError):
        return read_object(file_in(case.root / DECISION, "promotion.json"))
    return {}
