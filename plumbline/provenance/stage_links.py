"""The links to what the calibration set was chosen by and from: choice.json, and the pool with its features."""

from __future__ import annotations

from plumbline.provenance.data_links import NAME, file_in
from plumbline.provenance.link import Case, Link, Status, dig, how_to_restore
from plumbline.provenance.model_files import RESTORE, read_object
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.digest import differences, dvc_digest

CHOICES = "data/calibration_choice"
POOL = ("data/tokenized_samples", "data/sample_features")


def calibration_choice(case: Case) -> Link | None:
    """Check that choice.json holds the parameters that the model records.

    None if no run on record wrote one: the parameters are then only in the model's record. None without a record.
    """
    name, choice = "calibration choice", dig(case.record, "calibration_set", "choice")
    if not isinstance(choice, dict):
        return None
    key = str(choice.get("name"))
    path = f"{CHOICES}/{key}"
    recorded, wanted = case.recorded(path), case.wanted(path)
    if not NAME.fullmatch(key):
        return Link(name, "tampered", f"the calibration choice has no usable name: {key[:40]!r}", fix=RESTORE)
    if not (case.root / path).is_dir():
        if recorded is None and wanted is None:
            return None
        return Link(name, "missing", f"{path} does not exist", wanted or "", "", how_to_restore(case, path))
    digest = dvc_digest(case.root / path, case.hasher)
    content, problem = None, ""
    try:
        content = read_object(file_in(case.root / path, "choice.json"))
    except (OSError, ValueError) as error:
        problem = str(error)
    if content is not None and content != choice:
        other = sorted(k for k in {*content, *choice} if content.get(k) != choice.get(k))
        problem = f"{', '.join(other)} differ from the model's record"
    known_hashes = [md5 for md5 in (recorded, wanted) if md5 is not None]
    if not problem and known_hashes and digest not in known_hashes:
        problem = "the parameters are the model's, but dvc.lock records another folder"
    if not problem:
        return Link(name, "verified", f"{path}: choice.json has the parameters that the model records", digest, digest)
    replaced = digest == recorded and wanted not in (None, recorded)
    status: Status = "missing" if replaced else "tampered"
    meaning = f"{path} {'now holds another choice' if replaced else 'was altered'}: {problem}"
    return Link(name, status, meaning, wanted or recorded or "", digest, how_to_restore(case, path))


def pool(case: Case) -> Link | None:
    """Check that the samples and features from which the set was chosen are those that dvc.lock records.

    None if the workspace records neither. An absent folder is no fault: the set's tokens are compared with the
    documents' text.
    """
    problems, shown = [], []
    bad = ""
    for path in POOL:
        recorded, wanted = case.recorded(path), case.wanted(path)
        if recorded is None and wanted is None:
            continue
        if not (case.root / path).is_dir():
            shown.append(f"{path} is not here")
            continue
        digest = dvc_digest(case.root / path, case.hasher)
        if digest == wanted or (digest == recorded and wanted is None):
            shown.append(path)
        elif digest == recorded:
            shown.append(f"{path} has changed since, as dvc.lock records")
        else:
            bad = bad or path
            before = cached_listing(case.root, recorded or str(wanted))
            what = differences(before, case.hasher.files(case.root / path))[:3] if before else ["it changed on disk"]
            problems.append(f"{path}: {', '.join(what)}")
    if problems:
        return Link(
            "pool", "tampered", f"not what dvc.lock records: {'; '.join(problems)}", fix=how_to_restore(case, bad)
        )
    if not shown:
        return None
    return Link("pool", "verified", f"{'; '.join(shown)}")
