"""The links from the model into the workspace: base model, statistics, calibration set, documents."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from plumbline.artifact import sha256_file, sha256_json
from plumbline.calibration_set.reader import set_digest
from plumbline.provenance.link import Case, Link, Status, dig, how_to_restore
from plumbline.provenance.model_links import RESTORE, documents_of, read_object, samples_of
from plumbline.raw_corpus.document import document_id
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.code import LIBRARY, code_version
from plumbline.versioning.digest import differences, dvc_digest

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FIRST = 3
"""How many of many are named."""


def _folder_of(case: Case, asset: str) -> tuple[str, str]:
    """Path of the artifact of this model's calibration choice; and what is wrong with its name."""
    names = case.claims("calibration_set", "choice", "name") + case.claims("calibration_set", "name")
    paths = [f"data/{asset}/{name}" for name in names if NAME.fullmatch(name)]
    if not paths:
        return "", f"the calibration choice has no usable name: {names[:1]}"
    return next((path for path in paths if (case.root / path).is_dir()), paths[0]), ""


def _other_content(case: Case, path: str, says_it_is: bool) -> Status:
    """What it means that a folder of the workspace does not hold what the model was made from.

    Replaced by a legitimate other version, the original is merely not here; altered under the recorded hash, someone
    changed it.

    Args:
        says_it_is: the folder's own header claims to be what the model was made from.
    """
    recorded, wanted = case.recorded(path), case.wanted(path)
    if says_it_is:
        return "tampered"
    if recorded is None or dvc_digest(case.root / path, case.hasher) == recorded:
        return "missing"
    return "tampered" if wanted in (None, recorded) else "missing"


def base_model(case: Case) -> Link:
    """The base model's files give the digest that the statistics were collected on."""
    name, claims = "base model", case.claims("base_model", "digest")
    named = case.claims("base_model", "name")
    if not claims or not named:
        return Link(name, "missing", "the model does not record its base model", fix=RESTORE)

    from plumbline.base_model.folder import BUNDLED, base_model_digest

    folder = _base_folder(case, named)
    if folder is None:
        fix = "put it at the folder that params.yaml names, or download the hub revision"
        return Link(name, "missing", f"{named[0]} is not on this machine", claims[0], "", fix)
    try:
        found = base_model_digest(folder)
    except (OSError, ValueError) as error:
        return Link(name, "missing", f"{named[0]}: {error}", claims[0], "", "restore the base model's folder")
    if found in claims:
        return Link(name, "verified", f"{named[0]}, every file that decides an activation", found, found)
    if folder == BUNDLED:
        meaning = f"the {named[0]} that this version of Plumbline brings is another model"
        return Link(name, "missing", meaning, claims[0], found, "install the version of Plumbline that it came with")
    status: Status = "missing" if _was_replaced(case, folder) else "tampered"
    meaning = {
        "missing": f"{named[0]} holds another model now, which dvc.lock records as such",
        "tampered": f"{named[0]} is not the model that the statistics were collected on",
    }[status]
    return Link(name, status, meaning, claims[0], found, "restore it (`git checkout`, or download the revision again)")


def _base_folder(case: Case, named: list[str]) -> Path | None:
    """The folder of the base model: of the workspace, of the hub's cache, outside of both, or the bundled one."""
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
    # A model outside the workspace is recorded by its folder's name alone.
    return _configured(case, named) or (BUNDLED if BUNDLED.name in named else None)


def _configured(case: Case, named: list[str]) -> Path | None:
    try:
        params = yaml.safe_load((case.root / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    configured = dig(params, "model", "name")
    if isinstance(configured, str) and Path(configured).name in named and (case.root / configured).is_dir():
        return case.root / configured
    return None


def _was_replaced(case: Case, folder: Path) -> bool:
    """dvc.lock records the folder's present content as what a later run read: as its dependency, or, of the bundled
    model, as a part of the library."""
    if folder.is_relative_to(LIBRARY):
        before = case.entry.code_version if case.entry else ""
        now = code_version("quantized_model")
        later = [entry for entry in case.lock.values() if entry.asset == "quantized_model" and entry is not case.entry]
        return now != before and any(entry.code_version == now for entry in later)
    for entry in case.lock.values():
        for path, md5 in entry.deps.items():
            place = case.root / path
            if place.is_dir() and folder.is_relative_to(place) and entry is not case.entry:
                return dvc_digest(place, case.hasher) == md5 and (
                    case.entry is None or case.entry.deps.get(path) != md5
                )
    return False


def statistics(case: Case) -> Link:
    """The stored statistics are, byte by byte, those that the scales and the rounding came from."""
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
        return Link(name, "missing", f"{path} is not here", claims[0], "", how_to_restore(case, path))
    files = {file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
    found = sha256_json(files)
    if found in claims:
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
            meaning = f"{path} was collected on another {' and '.join(wrong)} than the model says"
            return Link(name, "tampered", meaning, claims[0], found, RESTORE)
        sites = header.get("sites")
        count = f"{len(sites)} sites, " if isinstance(sites, dict) else ""
        return Link(name, "verified", f"{path}: {count}{header.get('tokens')} tokens", found, found)
    try:
        says = read_object(file_in(folder, "header.json")).get("calibration_set") in case.claims(
            "calibration_set", "digest"
        )
    except (OSError, ValueError):
        says = True
    status = _other_content(case, path, says and case.recorded(path) in (None, case.wanted(path)))
    changed = "; ".join(differences({k: str(v) for k, v in recorded.items()}, files)[:5])
    meaning = f"{path} {'was altered' if status == 'tampered' else 'now holds other statistics'}: {changed}"
    return Link(name, status, meaning, claims[0], found, how_to_restore(case, path))


def calibration_set(case: Case) -> Link:
    """Every sample's id recomputed from its tokens; the ids in order, and the set's digest, are the recorded ones."""
    name, claims = "calibration set", case.claims("calibration_set", "digest")
    if not claims:
        return Link(name, "missing", "the model does not record its calibration set", fix=RESTORE)
    path, problem = _folder_of(case, "calibration_set")
    if problem:
        return Link(name, "tampered", problem, claims[0], "", RESTORE)
    folder = case.root / path
    if not folder.is_dir():
        return Link(name, "missing", f"{path} is not here", claims[0], "", how_to_restore(case, path))
    try:
        manifest = read_object(file_in(folder, "manifest.json"))
    except (OSError, ValueError) as error:
        manifest, problems = {}, [str(error)]
    else:
        problems = _contradictions(case, manifest)
    wrong, found, tokens = _compare_samples(case, folder)
    problems += wrong
    if found and found not in claims:
        problems.insert(0, "its samples are not those that the model was calibrated on")
    if not problems and found:
        expected = case.wanted(path) or case.recorded(path)
        now = dvc_digest(folder, case.hasher)
        if expected is None or now == expected:
            count = f"{len(samples_of(case.record)) or manifest.get('samples')} samples, {tokens:,} tokens"
            return Link(name, "verified", f"{path}: {count}, every id recomputed from its tokens", found, found)
        before = cached_listing(case.root, expected)
        what = ", ".join(differences(before, case.hasher.files(folder))) if before else "a file beside them changed"
        return Link(
            name, "tampered", f"{path}: the samples hold, but {what}", expected, now, how_to_restore(case, path)
        )
    status = _other_content(case, path, not manifest or manifest.get("digest") in claims)
    meaning = (
        f"{path} {'was altered' if status == 'tampered' else 'now holds another set'}: {'; '.join(problems[:FIRST])}"
    )
    return Link(name, status, meaning, claims[0], found, how_to_restore(case, path))


def file_in(folder: Path, name: str) -> Path:
    """A file of the workspace; DVC may have put it there as a link into its cache."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not there")
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


def _compare_samples(case: Case, folder: Path) -> tuple[list[str], str, int]:
    """What is wrong with samples.parquet; the set's digest recomputed from the tokens; the number of tokens."""
    columns = ["sample_id", "doc_ids", "domain", "source", "input_ids"]
    try:
        table = pq.read_table(file_in(folder, "samples.parquet"), columns=columns)
        tokens = [np.asarray(row.values) for chunk in table["input_ids"].chunks for row in chunk]
        ids = [hashlib.sha256(array.astype("<i4").tobytes()).hexdigest() for array in tokens]
        rows = table.drop_columns(["input_ids"]).to_pylist()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        return [f"samples.parquet cannot be read ({str(error).splitlines()[0]:.120})"], "", 0
    problems = [
        f"row {i}: the tokens are not those of its id" for i, row in enumerate(rows) if row["sample_id"] != ids[i]
    ]
    if case.record_holds:
        listed = samples_of(case.record)
        problems += [
            f"row {i}: {key} is {str(row[key])[:40]!r}, calibration.json says {str(sample.get(key))[:40]!r}"
            for i, (row, sample) in enumerate(zip(rows, listed, strict=False))
            for key in ("sample_id", "doc_ids", "domain", "source")
            if row[key] != sample.get(key)
        ]
        if len(rows) != len(listed):
            problems.append(f"{len(rows)} samples, calibration.json lists {len(listed)}")
    digests = [set_digest(ids, fingerprint) for fingerprint in case.claims("fingerprint")]
    claims = case.claims("calibration_set", "digest")
    return problems, next((d for d in digests if d in claims), digests[0] if digests else ""), sum(map(len, tokens))


def documents(case: Case) -> Link:
    """Every document that a sample came from is in the corpus, and its content has its id."""
    name, path = "documents", "data/raw_corpus"
    wanted, samples = documents_of(case.record), samples_of(case.record)
    if samples and all(sample.get("doc_ids") == [] for sample in samples):
        return Link(name, "verified", "none: the base model wrote every sample itself")
    if not wanted:
        return Link(name, "missing", "the model does not list its samples' documents", fix=RESTORE)
    corpus = case.root / path
    if not corpus.is_dir():
        return Link(name, "missing", f"{path} is not here", fix=how_to_restore(case, path))
    found, problems = _look_up(corpus, wanted)
    absent = sorted(wanted - found)
    if not problems and not absent:
        return Link(name, "verified", f"{len(wanted)} documents in {path}, every id recomputed from its content")
    recorded = case.recorded(path)
    unrecorded = recorded is not None and dvc_digest(corpus, case.hasher) != recorded
    if absent:
        shown = ", ".join(doc[:12] for doc in absent[:FIRST])
        problems.append(f"{len(absent)} of {len(wanted)} documents are not there (first {shown})")
    altered = len(problems) > bool(absent) or unrecorded
    if unrecorded:
        before = cached_listing(case.root, str(recorded))
        problems += differences(before, case.hasher.files(corpus))[:FIRST] if before else [f"{path} changed on disk"]
    status: Status = "tampered" if altered else "missing"
    meaning = f"{'altered' if altered else 'the corpus has moved on'}: {'; '.join(problems[: 2 * FIRST])}"
    return Link(name, status, meaning, fix=how_to_restore(case, path))


def _look_up(corpus: Path, wanted: set[str]) -> tuple[set[str], list[str]]:
    """Which of the documents are there with the right content, and what is wrong with others.

    Only row groups that hold one of them are read in full.
    """
    found: set[str] = set()
    problems: list[str] = []
    for shard in sorted(corpus.glob("shards/*.parquet")):
        try:
            with pq.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, ["doc_id"])["doc_id"].to_pylist()
                    rows = [row for row, doc in enumerate(ids) if doc in wanted]
                    if not rows:
                        continue
                    content = file.read_row_group(group, ["text", "messages"]).take(pa.array(rows))
                    for row, stored in zip(rows, content.to_pylist(), strict=True):
                        chat = None if stored["messages"] is None else tuple(stored["messages"])
                        if document_id(stored["text"], chat) == ids[row]:
                            found.add(ids[row])
                        else:
                            problems.append(
                                f"{shard.name}: the content of document {ids[row][:12]} is not what its id says"
                            )
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"{shard.name} cannot be read ({str(error).splitlines()[0]:.120})")
    return found, problems
