"""The links from the model into the workspace: base model, statistics, calibration set."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import sha256_file, sha256_json
from plumbline.calibration_set.reader import set_digest
from plumbline.provenance.link import Case, Link, Status, dig, how_to_restore
from plumbline.provenance.model_files import RESTORE, read_object, samples_of
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.code import LIBRARY, code_version
from plumbline.versioning.digest import differences, dvc_digest
from plumbline.yaml_file import read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FIRST = 3
"""Number of items that a message lists."""


def _folder_of(case: Case, asset: str) -> tuple[str, str]:
    """Path of the artifact of this model's calibration choice, and an error if the choice's name is unusable."""
    names = case.claims("calibration_set", "choice", "name") + case.claims("calibration_set", "name")
    paths = [f"data/{asset}/{name}" for name in names if NAME.fullmatch(name)]
    if not paths:
        return "", f"the calibration choice has no usable name: {names[:1]}"
    return next((path for path in paths if (case.root / path).is_dir()), paths[0]), ""


def _other_content(case: Case, path: str, claims_identity: bool) -> Status:
    """Status of a link whose folder in the workspace does not have the content that the model was made from.

    `missing` if a later run replaced the folder, `tampered` if its content differs from the recorded hash.

    Args:
        claims_identity: whether the folder's own header claims to be the model's.
    """
    recorded, wanted = case.recorded(path), case.wanted(path)
    if claims_identity:
        return "tampered"
    if recorded is None or dvc_digest(case.root / path, case.hasher) == recorded:
        return "missing"
    return "tampered" if wanted in (None, recorded) else "missing"


def base_model(case: Case) -> Link:
    """Check that the base model's digest is the one that the statistics were collected on."""
    name, claims = "base model", case.claims("base_model", "digest")
    named = case.claims("base_model", "name")
    if not claims or not named:
        return Link(name, "missing", "the model does not record its base model", fix=RESTORE)

    from plumbline.base_model.folder import BUNDLED, base_model_digest

    folder = base_folder(case, named)
    if folder is None:
        fix = "put it at the folder that params.yaml names, or download the hub revision"
        return Link(name, "missing", f"{named[0]} is not on this machine", claims[0], "", fix)
    try:
        digest = base_model_digest(folder)
    except (OSError, ValueError) as error:
        return Link(name, "missing", f"{named[0]}: {error}", claims[0], "", "restore the base model's folder")
    if digest in claims:
        return Link(name, "verified", f"{named[0]}, every file that affects activations", digest, digest)
    if folder == BUNDLED:
        meaning = f"the {named[0]} bundled with this version of Plumbline is another model"
        return Link(name, "missing", meaning, claims[0], digest, "install the version of Plumbline that bundled it")
    status: Status = "missing" if _was_replaced(case, folder) else "tampered"
    meaning = {
        "missing": f"{named[0]} is now another model, as dvc.lock records",
        "tampered": f"{named[0]} is not the model that the statistics were collected on",
    }[status]
    return Link(name, status, meaning, claims[0], digest, "restore it (`git checkout`, or download the revision again)")


def base_folder(case: Case, named: list[str]) -> Path | None:
    """The base model's folder: in the workspace, in the hub's cache, as configured, or the bundled one."""
    from plumbline.base_model.folder import BUNDLED

    for name in named:
        if (case.root / name).is_dir():
            return case.root / name
        revision = next(iter(case.claims("base_model", "revision")), None)
        if revision and not name.startswith((".", "/")):
            from huggingface_hub import snapshot_download

            try:
                return Path(snapshot_download(name, revision=revision, local_files_only=True))
            except (OSError, ValueError):
                continue
    # A model outside the workspace is recorded only by its folder's name.
    return _configured(case, named) or (BUNDLED if BUNDLED.name in named else None)


def _configured(case: Case, named: list[str]) -> Path | None:
    try:
        params = read_yaml(case.root / "params.yaml").content
    except (OSError, ValueError):
        return None
    configured = dig(params, "model", "name")
    if isinstance(configured, str) and Path(configured).name in named and (case.root / configured).is_dir():
        return case.root / configured
    return None


def _was_replaced(case: Case, folder: Path) -> bool:
    """Whether a later run in dvc.lock read the folder's current content: as a dependency, or, for the bundled model, as
    part of the library."""
    if folder.is_relative_to(LIBRARY):
        before = case.entry.code_version if case.entry else ""
        current = code_version("quantized_model")
        later = [entry for entry in case.lock.values() if entry.asset == "quantized_model" and entry is not case.entry]
        return current != before and any(entry.code_version == current for entry in later)
    for entry in case.lock.values():
        for path, md5 in entry.deps.items():
            place = case.root / path
            if place.is_dir() and folder.is_relative_to(place) and entry is not case.entry:
                return dvc_digest(place, case.hasher) == md5 and (
                    case.entry is None or case.entry.deps.get(path) != md5
                )
    return False


def statistics(case: Case) -> Link:
    """Check that the stored statistics are byte for byte those that scales and rounding were computed from."""
    name = "statistics"
    recorded = dig(case.record or case.summary, "statistics", "files")
    claims = case.claims("statistics", "digest")
    if not isinstance(recorded, dict) or not recorded or not claims:
        return Link(name, "missing", "the model does not record the statistics it was made from", fix=RESTORE)
    path, problem = _folder_of(case, "activation_stats")
    if problem:
        return Link(name, "tampered", problem, claims[0], "", RESTORE)
    folder = case.root / path
    if not folder.is_dir():
        return Link(name, "missing", f"{path} does not exist", claims[0], "", how_to_restore(case, path))
    files = {file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
    digest = sha256_json(files)
    if digest in claims:
        header = read_object(file_in(folder, "header.json"))
        wrong = [
            what
            for what, value, claimed in (
                ("base model", dig(header, "base_model", "digest"), case.claims("base_model", "digest")),
                ("fingerprint", header.get("fingerprint"), case.claims("fingerprint")),
                ("calibration set", header.get("calibration_set"), case.claims("calibration_set", "digest")),
            )
            if value not in claimed
        ]
        if wrong:
            meaning = f"{path} was collected on another {' and '.join(wrong)} than the model records"
            return Link(name, "tampered", meaning, claims[0], digest, RESTORE)
        sites = header.get("sites")
        count = f"{len(sites)} sites, " if isinstance(sites, dict) else ""
        return Link(name, "verified", f"{path}: {count}{header.get('tokens')} tokens", digest, digest)
    try:
        claims_identity = read_object(file_in(folder, "header.json")).get("calibration_set") in case.claims(
            "calibration_set", "digest"
        )
    except (OSError, ValueError):
        claims_identity = True
    status = _other_content(case, path, claims_identity and case.recorded(path) in (None, case.wanted(path)))
    changed = "; ".join(differences({k: str(v) for k, v in recorded.items()}, files)[:5])
    meaning = f"{path} {'was altered' if status == 'tampered' else 'now holds other statistics'}: {changed}"
    return Link(name, status, meaning, claims[0], digest, how_to_restore(case, path))


def calibration_set(case: Case) -> Link:
    """Recompute every sample's id from its tokens; compare ids, order and the set's digest with the record."""
    name, claims = "calibration set", case.claims("calibration_set", "digest")
    if not claims:
        return Link(name, "missing", "the model does not record its calibration set", fix=RESTORE)
    path, problem = _folder_of(case, "calibration_set")
    if problem:
        return Link(name, "tampered", problem, claims[0], "", RESTORE)
    folder = case.root / path
    if not folder.is_dir():
        return Link(name, "missing", f"{path} does not exist", claims[0], "", how_to_restore(case, path))
    try:
        manifest = read_object(file_in(folder, "manifest.json"))
    except (OSError, ValueError) as error:
        manifest, problems = {}, [str(error)]
    else:
        problems = _contradictions(case, manifest)
    wrong, digest, rows = _compare_samples(case, folder)
    problems += wrong
    if digest and digest not in claims:
        problems.insert(0, "its samples are not those that the model was calibrated on")
    if not problems and digest:
        known = [md5 for md5 in (case.wanted(path), case.recorded(path)) if md5 is not None]
        expected, folder_digest = next(iter(known), None), dvc_digest(folder, case.hasher)
        # A set that was chosen again from a larger pool may have the same samples in another folder.
        if expected is None or folder_digest in known:
            case.samples = rows
            tokens = sum(len(row["input_ids"]) for row in rows)
            count = f"{len(samples_of(case.record)) or manifest.get('samples')} samples, {tokens:,} tokens"
            return Link(name, "verified", f"{path}: {count}, every id recomputed from its tokens", digest, digest)
        before = cached_listing(case.root, expected)
        what = ", ".join(differences(before, case.hasher.files(folder))) if before else "another file changed"
        return Link(
            name,
            "tampered",
            f"{path}: the samples are verified, but {what}",
            expected,
            folder_digest,
            how_to_restore(case, path),
        )
    status = _other_content(case, path, not manifest or manifest.get("digest") in claims)
    meaning = (
        f"{path} {'was altered' if status == 'tampered' else 'now holds another set'}: {'; '.join(problems[:FIRST])}"
    )
    return Link(name, status, meaning, claims[0], digest, how_to_restore(case, path))


def file_in(folder: Path, name: str) -> Path:
    """Path of a file in the workspace, which may be DVC's link into its cache."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} does not exist")
    return path


def _contradictions(case: Case, manifest: dict[str, Any]) -> list[str]:
    wrong = []
    if manifest.get("digest") not in case.claims("calibration_set", "digest"):
        wrong.append("manifest.json has another digest")
    if manifest.get("fingerprint") not in case.claims("fingerprint"):
        wrong.append("manifest.json has another tokenization fingerprint")
    if case.record_holds and manifest.get("choice") != dig(case.record, "calibration_set", "choice"):
        wrong.append("manifest.json has other parameters of the choice")
    return wrong


def _compare_samples(case: Case, folder: Path) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Problems in samples.parquet, the set's digest recomputed from the tokens, and the rows."""
    columns = ["sample_id", "doc_ids", "domain", "source", "input_ids", "parents"]
    try:
        table = pq.read_table(file_in(folder, "samples.parquet"), columns=columns)
        tokens = [np.asarray(row.values) for chunk in table["input_ids"].chunks for row in chunk]
        ids = [hashlib.sha256(array.astype("<i4").tobytes()).hexdigest() for array in tokens]
        rows = [
            {**row, "input_ids": ids_of_row}
            for row, ids_of_row in zip(table.drop_columns(["input_ids"]).to_pylist(), tokens, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        return [f"samples.parquet cannot be read ({str(error).splitlines()[0]:.120})"], "", []
    problems = [f"row {i}: its tokens do not match its id" for i, row in enumerate(rows) if row["sample_id"] != ids[i]]
    if case.record_holds:
        listed = samples_of(case.record)
        problems += [
            f"row {i}: {key} is {str(row[key])[:40]!r}, calibration.json has {str(sample.get(key))[:40]!r}"
            for i, (row, sample) in enumerate(zip(rows, listed, strict=False))
            for key in ("sample_id", "doc_ids", "domain", "source")
            if row[key] != sample.get(key)
        ]
        if len(rows) != len(listed):
            problems.append(f"{len(rows)} samples, calibration.json lists {len(listed)}")
    digests = [set_digest(ids, fingerprint) for fingerprint in case.claims("fingerprint")]
    claims = case.claims("calibration_set", "digest")
    return problems, next((d for d in digests if d in claims), digests[0] if digests else ""), rows
