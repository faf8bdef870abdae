"""Restore content by its DVC hash, from the cache or the remote. Every byte is checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from plumbline.versioning.cache import cache_folder, cached, cached_listing
from plumbline.versioning.config import pull
from plumbline.versioning.digest import HASH, md5_of
from plumbline.versioning.remote import default_remote


class Lacking(ValueError):
    """The content is in neither the cache nor a remote; the message says what to do."""


class Store:
    """The objects in the DVC cache and remote of a workspace."""

    def __init__(self, root: Path, fetch: bool = False) -> None:
        """Set the workspace.

        Args:
            fetch: download what the cache lacks from the workspace's DVC remote into the cache.
        """
        self.root, self.fetch = root, fetch

    def listing(self, md5: str) -> dict[str, str]:
        """Relative path -> MD5 of the files of a folder.

        Raises:
            Lacking: the listing is unavailable.
            ValueError: the object is corrupt, or is not a listing of relative paths inside the folder.
        """
        self._ensure(md5)
        try:
            files = cached_listing(self.root, md5)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{_shown(self.root, md5)} is no listing of a folder; do not use it") from error
        if files is None:
            raise ValueError(f"{_shown(self.root, md5)} holds other bytes than its name says; delete it and `dvc pull`")
        for name in files:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
                raise ValueError(f"the listing {md5} names {name!r:.80}, which leads out of the folder; do not use it")
        return files

    def place(self, md5: str, target: Path) -> None:
        """Write the folder with this hash to `target`, which must be absent or empty.

        Raises:
            Lacking: the listing or a file is unavailable.
            ValueError: an object is corrupt; its copy is removed from `target`.
        """
        files = self.listing(md5)
        lacking = [file_md5 for file_md5 in files.values() if cached(self.root, file_md5) is None]
        if self.fetch and lacking:
            self._pull(*lacking)
        target.mkdir(parents=True, exist_ok=True)
        for name, file_md5 in files.items():
            source = cached(self.root, file_md5)
            if source is None:
                raise Lacking(self._lacks(file_md5, f"{name} of {md5}"))
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
            if md5_of(path) != file_md5:
                path.unlink()
                shown = _shown(self.root, file_md5)
                raise ValueError(f"{shown} ({name}) holds other bytes than its name says; delete it and `dvc pull`")

    def has(self, md5: str) -> bool:
        """Whether the cache has the folder's listing and all its files."""
        files = cached_listing(self.root, md5)
        return files is not None and all(cached(self.root, file_md5) for file_md5 in files.values())

    def _ensure(self, md5: str) -> None:
        if not HASH.fullmatch(md5):
            raise ValueError(f"{md5!r:.60} is no DVC hash")
        if cached(self.root, md5) is None and self.fetch:
            self._pull(md5)
        if cached(self.root, md5) is None:
            raise Lacking(self._lacks(md5, md5))

    def _lacks(self, md5: str, what: str) -> str:
        where = "DVC's cache and its remote lack" if self.fetch else "DVC's cache lacks"
        return (
            f"{where} {what} (expected at {_shown(self.root, md5)}); `dvc pull` where a remote has it, or run the "
            "pipeline with the parameters and data of then"
        )

    def _pull(self, *hashes: str) -> None:
        """Download objects into the cache. Callers detect missing ones; `listing` and `place` check the content.

        Folders and S3 are read without DVC, which other remotes need.
        """
        try:
            if (remote := default_remote(self.root)) is None:
                return
            if remote.is_readable:
                remote.download(hashes, cache_folder(self.root))
            else:
                pull(self.root, hashes)
        except OSError as error:
            why = f"DVC's remote cannot be asked ({str(error)[:400]})"
            raise Lacking(f"{why}; mend that, or bring the cache") from error


def _shown(root: Path, md5: str) -> str:
    return os.path.relpath(cache_folder(root) / md5[:2] / md5[2:], root)
