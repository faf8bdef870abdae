"""Resolves a reference to a model's folder: a path, a registered model, a run, a digest or a weights file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_file
from plumbline.provenance.link import Case, Link, dig
from plumbline.provenance.model_files import RECORD, record_of
from plumbline.tracking.model_version import ModelUri, ModelVersion
from plumbline.tracking.registry import open_registry
from plumbline.versioning.cache import cached_folders
from plumbline.versioning.digest import HASH, dvc_digest
from plumbline.versioning.lock import read_lock
from plumbline.versioning.object_store import Store

MODELS = "data/quantized_model"
HUB_FOLDER = re.compile(r"models--.+--.+|models--[^-].*")
RUN = re.compile(r"(?:runs:/)?(?P<id>[0-9a-f]{32})")


class Unresolvable(ValueError):
    """A reference that names no model; the message says what was found and expected."""


@dataclass
class Subject:
    """The subject of an audit."""

    reference: str
    """The reference as the user wrote it."""
    folder: Path
    """The model's folder, or a temporary copy with the same bytes."""
    shown: str
    """Where the folder is from, for display."""
    extra: tuple[Callable[[Case], Link], ...] = ()
    """Checks specific to the kind of reference."""
    version: ModelVersion | None = None
    place: Path | None = None
    """The folder beside which the signatures are; None if there is only a temporary copy."""


@contextlib.contextmanager
def resolved(reference: str, root: Path, fetch: bool = False) -> Iterator[Subject]:
    """Resolve a reference to a model. Temporary copies are deleted at the end of the context.

    Args:
        reference: a folder, a Hugging Face cache folder (`models--org--name`, or a snapshot in it), a weights file,
            `models:/name@alias`, `models:/name/version`, `runs:/ID` or a run's id, or a DVC hash (`....dir`).
        fetch: also search DVC's remote for a folder that the cache lacks.

    Raises:
        Unresolvable: the reference names no model.
        TrackingError: MLflow has no such model or run.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-audit-") as scratch:
        yield _resolve(reference, Store(root, fetch), Path(scratch) / "model")


def _resolve(reference: str, store: Store, scratch: Path) -> Subject:
    root = store.root
    if reference.startswith("models:"):
        uri = ModelUri.parse(reference)
        return _registered(reference, open_registry(root, read_only=True).resolve(uri), store, scratch)
    if not reference.strip():
        raise Unresolvable(f"empty reference: expected a folder, a file, models:/NAME@ALIAS or a run; {_known(root)}")
    path = Path(reference)
    try:
        path.exists()
    except (OSError, ValueError) as error:  # too long, or with a NUL character
        raise Unresolvable(f"{reference[:80]!r} is not a path: {error}") from error
    if path.is_dir():
        if (hub := _hub_snapshot(path)) is not None:
            return _from_hub(reference, hub, scratch)
        return Subject(reference, path, reference, place=path)
    if path.is_file():
        return _from_weights(reference, path, store, scratch)
    if match := RUN.fullmatch(reference):
        return _registered(reference, open_registry(root, read_only=True).of_run(match["id"]), store, scratch)
    if HASH.fullmatch(reference):
        return _from_cache(reference, reference, store, scratch)
    if (root / reference).is_dir():  # a path relative to the workspace
        return Subject(reference, root / reference, reference, place=root / reference)
    raise Unresolvable(
        f"{reference!r}: no such folder or file, and not of the form models:/NAME@ALIAS, models:/NAME/VERSION, "
        f"runs:/ID or a DVC hash; {_known(root)}"
    )


def _known(root: Path) -> str:
    there = [path.name for path in sorted((root / MODELS).glob("*")) if path.is_dir()]
    if not there:
        return f"{MODELS} of {root} has no model (PLUMBLINE_ROOT names another workspace)"
    return f"models here: {', '.join(f'{MODELS}/{name}' for name in there[:4])}{' …' if len(there) > 4 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# MLflow and DVC


def _registered(reference: str, version: ModelVersion, store: Store, scratch: Path) -> Subject:
    """Resolve a registered version to its path, or to a copy from DVC's cache if a later run replaced it."""
    root = store.root
    place = root / version.path
    inside = bool(version.path) and place.resolve().is_relative_to(root.resolve())
    if inside and place.is_dir():
        digest = _digest(place)
        recorded = _recorded(root, version.path)
        # Neither the registered version nor a later one from a run: the folder was altered, which the audit reports.
        if digest == version.model or (digest != recorded and recorded in (None, version.model)):
            return Subject(reference, place, f"{version.path}, {version.shown}", (), version, place)
    subject = _from_cache(reference, version.model, store, scratch)
    shown, missing_place = f"{subject.shown}, {version.shown}", place if inside and not place.exists() else None
    return Subject(reference, subject.folder, shown, subject.extra, version, missing_place)


def _from_cache(reference: str, md5: str, store: Store, scratch: Path) -> Subject:
    """Copy a folder from DVC's cache by its hash."""
    name = "DVC's cache"
    try:
        store.place(md5, scratch)
    except (OSError, ValueError) as error:
        fix = "`plumbline audit --restore DIR` also searches the remote; or `dvc pull` in the commit that made it"
        problem = Link(name, "missing", f"{error}", md5, "", fix)
        return Subject(reference, scratch, f"DVC's cache, {md5}", (lambda case: problem,))
    verified = Link(name, "verified", "the folder was restored from DVC's cache by its hash", md5, md5)
    return Subject(reference, scratch, f"DVC's cache, {md5}", (lambda case: verified,))


def _recorded(root: Path, path: str) -> str | None:
    with contextlib.suppress(ValueError):
        return next((entry.outs[path] for entry in read_lock(root).values() if path in entry.outs), None)
    return None


def _digest(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return dvc_digest(folder)
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# A weights file


def _from_weights(reference: str, path: Path, store: Store, scratch: Path) -> Subject:
    """Find the model of a weights file by its digest: in the file's folder, the workspace, DVC's cache."""
    if not path.stat().st_size:
        raise Unresolvable(f"{reference} is empty, so its digest identifies no model")
    root, sha256 = store.root, sha256_file(path)

    def link(where: str, others: Sequence[str] = ()) -> Callable[[Case], Link]:
        meaning = f"{path.name} is a weights file of {where}"
        if others:
            meaning += f", and the same bytes of {', '.join(others)}: audit those by their folders"
        return lambda case: Link("weights file", "verified", meaning, sha256, sha256)

    own = path.resolve().parent
    places = [own, *(folder for folder in sorted((root / MODELS).glob("*")) if folder.resolve() != own)]
    if folders := [folder for folder in places if sha256 in _weights_of(folder)]:
        names = [f.relative_to(root).as_posix() if f.is_relative_to(root) else str(f) for f in folders]
        # Rounding to nearest reads no calibration data, so several choices may have the same weights.
        others = [] if folders[0] == own else names[1:]
        return Subject(reference, folders[0], names[0], (link(names[0], others),), place=folders[0])
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    for digest, files in cached_folders(root):
        if RECORD in files and md5 in files.values():
            subject = _from_cache(reference, digest, store, scratch)
            return Subject(reference, subject.folder, subject.shown, (link(subject.shown), *subject.extra))
    missing = Link(
        "weights file",
        "missing",
        f"no model of this workspace, and none in DVC's cache, has a file with the SHA-256 of {path.name}",
        "",
        sha256,
        "audit in the workspace that made it (PLUMBLINE_ROOT), after `dvc pull` there; an altered file cannot be found",
    )
    return Subject(reference, scratch, reference, (lambda case: missing,))


def _weights_of(folder: Path) -> list[Any]:
    recorded = dig(record_of(folder), "model")
    return list(recorded.values()) if isinstance(recorded, dict) else []


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face's cache


def _hub_snapshot(path: Path) -> Path | None:
    """Return the snapshot if the folder is one of the hub's cache, else None.

    Raises:
        Unresolvable: there are several snapshots, and refs/main names none of them.
    """
    path = path.absolute()
    if path.parent.name == "snapshots" and HUB_FOLDER.fullmatch(path.parent.parent.name):
        return path
    if not HUB_FOLDER.fullmatch(path.name) or not (path / "snapshots").is_dir():
        return None
    there = sorted(entry.name for entry in (path / "snapshots").iterdir() if entry.is_dir())
    main = path / "refs" / "main"
    named = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    chosen = named if named in there else there[0] if len(there) == 1 else ""
    if not chosen:
        raise Unresolvable(
            f"{path} holds {len(there)} snapshots ({', '.join(there[:4])}) and refs/main names "
            f"{named or 'none of them'}; name {path.name}/snapshots/REVISION"
        )
    return path / "snapshots" / chosen


def _from_hub(reference: str, snapshot: Path, scratch: Path) -> Subject:
    """Check the blobs of a snapshot against their names, which are digests, and lay the files out without links."""
    home, wrong, count = snapshot.parents[1].resolve(), [], 0
    scratch.mkdir(parents=True, exist_ok=True)
    for link in sorted(snapshot.rglob("*")):
        name = link.relative_to(snapshot).as_posix()
        try:
            target = link.resolve()
        except (OSError, RuntimeError):  # a loop
            target = home / "nowhere"
        if link.is_dir() and not link.is_symlink():
            continue
        if not target.is_file() or not target.is_relative_to(home):
            wrong.append(f"{name} points outside the cache folder or to no file")
            continue
        if link.is_symlink() and not _blob_holds(target):
            wrong.append(f"{name}: its blob {target.name[:12]} has other bytes than its name states")
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(target, place)
        except OSError:
            shutil.copyfile(target, place)
        count += 1
    shown, revision = f"revision {snapshot.name} of {snapshot.parents[1].name}", snapshot.name
    if wrong:
        fix = f"delete {snapshot.parents[1].name} from the hub's cache and download it again"
        link_ = Link("hub cache", "tampered", "; ".join(wrong[:5]), revision, "", fix)
    else:
        link_ = Link("hub cache", "verified", f"{count} files of {shown}, each blob matches its name", revision)
    return Subject(reference, scratch, shown, (lambda case: link_,), place=snapshot)


def _blob_holds(blob: Path) -> bool:
    """Whether a blob matches its name: the SHA-256 of a large file, or git's hash."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_file(blob) == blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return False
