"""DVC's hashes recomputed without DVC, so that an audit does not rest on what it audits.

DVC trusts its read-only cache files and remembers hashes by time of change: a flipped byte passes `dvc status` and
`dvc checkout`. Here every byte is read.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plumbline.versioning.digest import folder_digest

HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass
class Hasher:
    """MD5s of files, each read once although it has several names (a hard link into the cache is the same file)."""

    seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def file(self, path: Path) -> str:
        """MD5 (hex) of a file's bytes.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is a device or a pipe, which could be read for ever.
        """
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a plain file; remove it")
        key = (status.st_dev, status.st_ino)
        if key not in self.seen:
            with path.open("rb") as file:
                self.seen[key] = hashlib.file_digest(file, "md5").hexdigest()
        return self.seen[key]

    def files(self, folder: Path) -> dict[str, str]:
        """MD5 (hex) of every file below a folder by its relative path, in the order of the paths."""
        return {name: self.file(folder / name) for name in sorted(_names(folder))}


def dvc_digest(path: Path, hasher: Hasher | None = None) -> str:
    """DVC's hash of a file (MD5 of its bytes) or of a folder (MD5 of the list of its files' MD5s and paths, `.dir`).

    No file is left out: an artifact has none that .dvcignore would exempt.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    hasher = hasher or Hasher()
    return folder_digest(hasher.files(path)) if path.is_dir() else hasher.file(path)


def _names(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        for name in files:
            yield (Path(parent) / name).relative_to(folder).as_posix()


# ---------------------------------------------------------------------------------------------------------------------
# What DVC recorded


@dataclass(frozen=True)
class Entry:
    """A stage in dvc.lock."""

    name: str
    outs: dict[str, str]
    """Path relative to the workspace: DVC hash."""
    deps: dict[str, str]
    params: dict[str, Any]


def locked(root: Path) -> dict[str, Entry]:
    """The stages of dvc.lock by name; none without the file.

    Raises:
        ValueError: it is not a dvc.lock.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        stages = {} if content is None else content.get("stages") or {}
        return {name: entry_of(name, stage) for name, stage in stages.items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what DVC wrote ({error}); restore it with `git checkout dvc.lock`") from error


def entry_of(name: str, stage: dict[str, Any]) -> Entry:
    """A stage's record as DVC writes it, in dvc.lock and in its run cache.

    Raises:
        AttributeError, KeyError, TypeError: it is not one.
    """

    def hashes(side: str) -> dict[str, str]:
        return {str(item["path"]): str(item["md5"]) for item in stage.get(side) or [] if "md5" in item}

    params: dict[str, Any] = {}
    for values in (stage.get("params") or {}).values():
        params |= values or {}
    return Entry(name, hashes("outs"), hashes("deps"), params)


def cache_folder(root: Path) -> Path:
    """Where DVC keeps objects by hash: `cache.dir` of .dvc/config.local or .dvc/config, else .dvc/cache."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(root / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        place = parser.get("cache", "dir", fallback="").strip("\"' ")
        if place:
            return root / ".dvc" / place / "files" / "md5"  # relative to the config file
    return root / ".dvc" / "cache" / "files" / "md5"


def cached(root: Path, md5: str) -> Path | None:
    """The object of that hash in DVC's cache, if it is there; its content is not checked."""
    if not HASH.fullmatch(md5):
        return None
    path = cache_folder(root) / md5[:2] / md5[2:]
    return path if path.is_file() else None


def cached_listing(root: Path, md5: str) -> dict[str, str] | None:
    """Relative path: MD5 of the files of a folder of which only the DVC hash is known; None if the cache lacks it."""
    path = cached(root, md5)
    if path is None or not md5.endswith(".dir"):
        return None
    data = path.read_bytes()
    if hashlib.md5(data).hexdigest() + ".dir" != md5:
        return None
    return {str(item["relpath"]): str(item["md5"]) for item in json.loads(data)}


def damaged(root: Path, md5: str, hasher: Hasher) -> list[str]:
    """Objects in DVC's cache, relative to the workspace, that belong to an artifact and hold other bytes than they say.

    With hard links the cache's file and the workspace's file are the same, so that whoever alters one alters both, and
    `dvc checkout` brings back nothing.
    """
    objects = {md5, *(cached_listing(root, md5) or {}).values()}
    paths = [(name, path) for name in sorted(objects) if (path := cached(root, name))]
    return [_relative(path, root) for name, path in paths if hasher.file(path) != name.removesuffix(".dir")]


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """How two folders differ, in words, a file each."""
    changed = [f"{name} changed" for name in expected if name in found and found[name] != expected[name]]
    gone = [f"{name} is gone" for name in expected if name not in found]
    return changed + gone + [f"{name} was added" for name in found if name not in expected]


# ---------------------------------------------------------------------------------------------------------------------
# Verifying a whole workspace


@dataclass(frozen=True)
class Corrupted:
    """Something on disk that is not what its hash says."""

    path: str
    """Relative to the workspace where it lies in it."""
    expected: str
    found: str
    """DVC hash of what is there; empty: nothing is there."""
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(root: Path) -> list[Corrupted]:
    """Re-hash every output named in dvc.lock and every object of DVC's cache.

    Returns:
        What is not as recorded, outputs first; empty when all is well. An output that is absent is listed, too; an
        object that the cache lacks is not (it may be on the remote).

    Raises:
        ValueError: dvc.lock cannot be read.
    """
    if not (root / "dvc.lock").is_file():
        return [Corrupted("dvc.lock", "", "", "not there, so nothing could be verified; `plumbline run` makes it")]
    hasher = Hasher()
    outs = {path: md5 for entry in locked(root).values() for path, md5 in entry.outs.items()}
    wrong = [found for path, md5 in sorted(outs.items()) if (found := _check_out(root, path, md5, hasher))]
    cache = cache_folder(root)
    for path in sorted(cache.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if not HASH.fullmatch(name):
            continue  # a file that DVC was writing when it was killed
        holds = hasher.file(path) + (".dir" if name.endswith(".dir") else "")
        if holds != name:
            what = (
                "the object in DVC's cache holds other bytes than its name says; delete it, then `dvc pull` or re-run"
            )
            wrong.append(Corrupted(_relative(path, root), name, holds, what))
    return wrong


def _check_out(root: Path, path: str, md5: str, hasher: Hasher) -> Corrupted | None:
    place = root / path
    if not place.exists():
        return Corrupted(path, md5, "", f"not there; `dvc checkout {path}`, or `dvc pull {path}` if the cache lacks it")
    found = dvc_digest(place, hasher)
    if found == md5:
        return None
    before = cached_listing(root, md5)
    detail = ", ".join(differences(before, hasher.files(place))[:5]) if before and place.is_dir() else f"found {found}"
    return Corrupted(path, md5, found, f"not what dvc.lock records ({detail}); `dvc checkout --force {path}`")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
