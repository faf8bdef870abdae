"""DVC's remote, read without DVC: objects by hash, in a folder or a bucket of S3.

DVC lays a remote out as it does its cache: `files/md5/ab/cdef…`. Other kinds of remote are left to DVC.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from plumbline import s3
from plumbline.versioning.settings import URL, default_remote_section, settings

CHUNK = 1 << 20
TRUE = ("true", "1", "yes", "on")


@dataclass(frozen=True)
class DvcRemote:
    """A remote of DVC's configuration."""

    name: str
    url: str
    """An absolute folder, or a URL such as `s3://bucket/prefix`."""
    options: Mapping[str, str]
    """Its other settings, such as `endpointurl`."""

    @property
    def is_readable(self) -> bool:
        """Whether it can be read without DVC: a folder or S3, laid out by hash."""
        by_path = any(self.options.get(key, "").lower() in TRUE for key in ("version_aware", "worktree"))
        return not by_path and (not URL.match(self.url) or self.url.startswith(s3.SCHEME))

    def problem(self) -> str:
        """The reason why the remote cannot be used, found within seconds; empty if it can, or if only DVC can tell."""
        if self.url.startswith(s3.SCHEME):
            return s3.bucket_problem(self.url, self.options)
        if URL.match(self.url):
            return ""
        blocked = next((place for place in (Path(self.url), *Path(self.url).parents) if place.is_file()), None)
        return f"{blocked} is a file; name a folder, which need not exist, or a URL" if blocked else ""

    def download(self, hashes: Collection[str], cache: Path) -> None:
        """Bring objects into the cache; those that the remote lacks are skipped.

        Args:
            cache: folder of the cache's objects.

        Raises:
            StoreError: the bucket does not answer, or refuses.
            ValueError: an object holds other bytes than its name says; it is not brought.
        """
        with s3.explained(self.url):
            files, base = self._filesystem()
            for md5 in hashes:
                name = f"{md5[:2]}/{md5[2:]}"
                with contextlib.suppress(FileNotFoundError), files.open(f"{base}/files/md5/{name}", "rb") as source:
                    self._keep(source, md5, cache / name)

    def _filesystem(self) -> tuple[Any, str]:
        if self.url.startswith(s3.SCHEME):
            return s3.filesystem(self.options), self.url.removeprefix(s3.SCHEME).rstrip("/")
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), self.url

    def _keep(self, source: BinaryIO, md5: str, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.md5()
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=".")
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
            if digest.hexdigest() != md5.removesuffix(".dir"):
                raise ValueError(
                    f"{self.url}/files/md5/{md5[:2]}/{md5[2:]} holds other bytes than its name says; delete it there, "
                    "and `dvc push` from a workspace that has it"
                )
            draft.chmod(0o444)  # as DVC leaves its objects
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)


def default_remote(root: Path) -> DvcRemote | None:
    """The default remote of DVC's configuration (`core.remote`); None: there is none.

    Raises:
        UnreadableConfig: DVC's configuration cannot be read.
    """
    name, section = default_remote_section(settings(root))
    options = dict(section)
    url = options.pop("url", "")
    return DvcRemote(name, url, options) if name and url else None
