"""From what a person types to the folder that is audited: a path, a registered model, a run, a digest, a file."""

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
from plumbline.provenance.model_links import RECORD, record_of
from plumbline.provenance.registry import registry_link
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
    """No model is meant by what was given; the message says what was found and expected."""


@dataclass
class Subject:
    """What is audited."""

    reference: str
    """As it was given."""
    folder: Path
    """The model's folder, or a temporary copy with the same bytes."""
    shown: str
    """Where the folder is from, for people."""
    extra: tuple[Callable[[Case], Link], ...] = ()
    """Links that only this kind of reference has."""
    version: ModelVersion | None = None
    place: Path | None = None
    """The folder beside which its signatures lie; None where only a temporary copy is at hand."""


@contextlib.contextmanager
def resolved(reference: str, root: Path, fetch: bool = False) -> Iterator[Subject]:
    """The model that a reference means. Temporary copies live as long as the context.

    Args:
        reference: a folder, a Hugging Face cache folder (`models--org--name`, or a snapshot in it), a weights file,
            `models:/name@alias`, `models:/name/version`, `runs:/ID` or a run's id, or a DVC hash (`....dir`).
        fetch: look into DVC's remote, too, for a folder that the cache lacks.

    Raises:
        Unresolvable: there is no such thing.
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
        raise Unresolvable(f"nothing was given: expected a folder, a file, models:/NAME@ALIAS or a run; {_known(root)}")
    path = Path(reference)
    try:
        path.exists()
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise Unresolvable(f"{reference[:80]!r} is no path: {error}") from error
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
    if (root / reference).is_dir():  # a path in the workspace, given from elsewhere
        return Subject(reference, root / reference, reference, place=root / reference)
    raise Unresolvable(
        f"{reference!r}: neither a folder nor a file is there, and it is no models:/NAME@ALIAS, models:/NAME/VERSION, "
        f"runs:/ID or DVC hash; {_known(root)}"
    )


def _known(root: Path) -> str:
    there = [path.name for path in sorted((root / MODELS).glob("*")) if path.is_dir()]
    if not there:
        return f"{MODELS} of {root} has no model (PLUMBLINE_ROOT names another workspace)"
    return f"models here: {', '.join(f'{MODELS}/{name}' for name in there[:4])}{' …' if len(there) > 4 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# MLflow and DVC


def _registered(reference: str, version: ModelVersion, store: Store, scratch: Path) -> Subject:
    """The registered folder: where it was, if it is still that; else from DVC's cache by its hash."""
    extra = (lambda case: registry_link(version, case),)
    root = store.root
    place = root / version.path
    inside = bool(version.path) and place.resolve().is_relative_to(root.resolve())
    if inside and place.is_dir():
        found = _digest(place)
        recorded = _recorded(root, version.path)
        # Neither the registered version nor a legitimate later one: somebody altered it, which is to be reported.
        if found == version.model or (found != recorded and recorded in (None, version.model)):
            return Subject(reference, place, f"{version.path}, {version.shown}", extra, version, place)
    subject = _from_cache(reference, version.model, store, scratch)
    shown, gone = f"{subject.shown}, {version.shown}", place if inside and not place.exists() else None
    return Subject(reference, subject.folder, shown, (*subject.extra, *extra), version, gone)


def _from_cache(reference: str, md5: str, store: Store, scratch: Path) -> Subject:
    """A folder of which the hash is known, copied out of DVC's cache."""
    name = "DVC's cache"
    try:
        store.place(md5, scratch)
    except (OSError, ValueError) as error:
        fix = "`plumbline audit --restore DIR` asks the remote, too; or `dvc pull` in the commit that made it"
        problem = Link(name, "missing", f"{error}", md5, "", fix)
        return Subject(reference, scratch, f"DVC's cache, {md5}", (lambda case: problem,))
    verified = Link(name, "verified", "the folder was taken from DVC's cache by its hash", md5, md5)
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
    """The model that has this file, by its digest: the file's own folder, the workspace, DVC's cache."""
    if not path.stat().st_size:
        raise Unresolvable(f"{reference} is empty, so no digest leads from it to a model")
    root, sha256 = store.root, sha256_file(path)

    def link(where: str, others: Sequence[str] = ()) -> Callable[[Case], Link]:
        meaning = f"{path.name} is a weights file of {where}"
        if others:
            meaning += f", and the same bytes of {', '.join(others)}: audit those by their folders"
        return lambda case: Link("weights file", "verified", meaning, sha256, sha256)

    own = path.resolve().parent
    places = [own, *(folder for folder in sorted((root / MODELS).glob("*")) if folder.resolve() != own)]
    if found := [folder for folder in places if sha256 in _weights_of(folder)]:
        names = [f.relative_to(root).as_posix() if f.is_relative_to(root) else str(f) for f in found]
        # Rounding to nearest reads no calibration data: several choices may have made these very bytes.
        others = [] if found[0] == own else names[1:]
        return Subject(reference, found[0], names[0], (link(names[0], others),), place=found[0])
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
        "audit inside the workspace that made it (PLUMBLINE_ROOT), after `dvc pull` there; an altered file is unknown",
    )
    return Subject(reference, scratch, reference, (lambda case: missing,))


def _weights_of(folder: Path) -> list[Any]:
    recorded = dig(record_of(folder), "model")
    return list(recorded.values()) if isinstance(recorded, dict) else []


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face's cache


def _hub_snapshot(path: Path) -> Path | None:
    """The snapshot that is meant, if the folder is one of the hub's cache.

    Raises:
        Unresolvable: it has several, and none is `main`.
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
            f"{named or 'none of them'}; give {path.name}/snapshots/REVISION"
        )
    return path / "snapshots" / chosen


def _from_hub(reference: str, snapshot: Path, scratch: Path) -> Subject:
    """A snapshot is links into `blobs`, each named by its digest: checked, then laid out as plain files."""
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
            wrong.append(f"{name} leads out of the cache folder or nowhere")
            continue
        if link.is_symlink() and not _blob_holds(target):
            wrong.append(f"{name}: its blob {target.name[:12]} holds other bytes than its name says")
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
        link_ = Link("hub cache", "verified", f"{count} files of {shown}, each blob is what its name says", revision)
    return Subject(reference, scratch, shown, (lambda case: link_,), place=snapshot)


def _blob_holds(blob: Path) -> bool:
    """A blob is named by its SHA-256 (large files), or as git names it."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_file(blob) == blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return False
