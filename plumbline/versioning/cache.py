"""DVC's cache: its folder, and its objects by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from plumbline.versioning.digest import HASH, Hasher
from plumbline.versioning.settings import cache_directory, config_files, settings


def cache_folder(root: Path) -> Path:
    """The folder in which DVC keeps objects by hash, from the configuration of the machine, the user and the workspace.

    Raises:
        UnreadableConfig: DVC's configuration cannot be read.
    """
    files = config_files(root)
    return _cache_folder(root, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _cache_folder(root: Path, stamps: tuple[tuple[Path, int], ...]) -> Path:
    return cache_directory(root, settings(root)) / "files" / "md5"


def run_records(root: Path) -> Iterator[Path]:
    """The files of DVC's run cache, one per run."""
    return (cache_folder(root).parents[1] / "runs").glob("*/*/*")


def cached(root: Path, md5: str) -> Path | None:
    """Path of the object with this hash in DVC's cache; None if it is absent. Its content is not checked."""
    if not HASH.fullmatch(md5):
        return None
    path = cache_folder(root) / md5[:2] / md5[2:]
    return path if path.is_file() else None


def cached_listing(root: Path, md5: str) -> dict[str, str] | None:
    """Relative path -> MD5 of the files of a folder, by its DVC hash; None if its listing is absent or corrupt."""
    path = cached(root, md5)
    if path is None or not md5.endswith(".dir"):
        return None
    data = path.read_bytes()
    if hashlib.md5(data).hexdigest() + ".dir" != md5:
        return None
    return {str(item["relpath"]): str(item["md5"]) for item in json.loads(data)}


def cached_bytes(root: Path, md5: str) -> bytes | None:
    """The bytes of the file with this hash; None if the cache lacks it or its content has another hash."""
    path = cached(root, md5)
    data = path.read_bytes() if path else b""
    return data if path and hashlib.md5(data).hexdigest() == md5 else None


def cached_folders(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(DVC hash, {relative path: MD5}) of every folder listing in DVC's cache, sorted by hash."""
    for path in sorted(cache_folder(root).glob("[0-9a-f][0-9a-f]/*.dir")):
        md5 = path.parent.name + path.name
        try:
            files = cached_listing(root, md5)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if files:
            yield md5, files


def damaged(root: Path, md5: str, hasher: Hasher) -> list[str]:
    """Paths of an artifact's objects in DVC's cache whose content does not match their hash.

    With hard links the cache's file and the workspace's file are the same file. An edit of one then edits both, and
    `dvc checkout` cannot restore it.
    """
    objects = {md5, *(cached_listing(root, md5) or {}).values()}
    paths = [(name, path) for name in sorted(objects) if (path := cached(root, name))]
    return [relative(path, root) for name, path in paths if hasher.file(path) != name.removesuffix(".dir")]


def relative(path: Path, root: Path) -> str:
    """A path for display: relative to the workspace if it lies inside it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
