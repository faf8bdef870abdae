"""The store of an inbox: a local folder, or a URL that fsspec opens (`s3://bucket/prefix`, `gs://...`)."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from plumbline.artifact import sha256_file
from plumbline.distribution import install_command
from plumbline.raw_corpus.sources.names import SUFFIXES, as_text, file_names, is_unfinished
from plumbline.s3 import SCHEME, explained

IGNORED = ("README.md",)
"""Explains the inbox to people; not a document."""
CHUNK = 1 << 20
TAIL = 1 << 16


@dataclass(frozen=True)
class Seen:
    """The state of a file in the inbox."""

    stamp: str
    """Changes with the file."""
    bytes: int
    problem: str | None = None
    """Reason why it is not read."""
    cut_off: bool = False
    """Its end is not valid in its format, so it is probably incomplete."""


class InboxStore(ABC):
    """An inbox, and the folder with copies of its files, named by the SHA-256 of their content."""

    def __init__(self, held: Path, max_bytes: int) -> None:
        self.held, self.max_bytes = held, max_bytes

    @abstractmethod
    def look(self) -> dict[str, Seen]:
        """The files by name, in order, without hidden ones, unfinished ones (by name) and the README.

        Raises:
            OSError, ImportError: the inbox cannot be listed; the message says what to do.
        """

    @abstractmethod
    def _open(self, name: str) -> BinaryIO | None:
        """Open a file; None: it no longer exists or is not a plain file."""

    @abstractmethod
    def _stamp(self, name: str) -> str | None:
        """The current stamp of a file, as in `Seen`; None: it does not exist."""

    def place(self, sha256: str) -> Path:
        """Path of the copy of this content."""
        return self.held / sha256

    def hold(self, name: str) -> str | None:
        """Copy a file into the store; returns its SHA-256, or None if it changed meanwhile.

        Raises:
            OSError: the inbox cannot be read.
        """
        before = self._stamp(name)
        self.held.mkdir(parents=True, exist_ok=True)
        draft = tempfile.NamedTemporaryFile(dir=self.held, prefix=".", delete=False)  # noqa: SIM115
        digest = hashlib.sha256()
        try:
            try:
                with draft, self._opened(name) as source:
                    if source is None:
                        return None
                    while chunk := source.read(CHUNK):
                        digest.update(chunk)
                        draft.write(chunk)
            except OSError:  # reading may fail if the object was replaced
                if self._stamp(name) == before:
                    raise
                return None
            if before is None or self._stamp(name) != before:
                return None
            Path(draft.name).replace(self.place(digest.hexdigest()))
        finally:
            Path(draft.name).unlink(missing_ok=True)
        return digest.hexdigest()

    def find(self, name: str, sha256: str) -> Path | None:
        """Path of the copy of this content; None: not found.

        A missing copy is made again from the inbox, whatever the file's name there.
        """
        place = self.place(sha256)
        if place.is_file() and sha256_file(place) == sha256:
            return place
        looked = self.look()
        readable = [other for other, seen in looked.items() if seen.problem is None]
        for other in sorted(readable, key=lambda other: other != name):
            if self.hold(other) == sha256:
                return place
        return None

    def forget(self, keep: set[str]) -> None:
        """Delete the copies that are no longer listed."""
        for path in self.held.glob("*") if self.held.is_dir() else ():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _opened(self, name: str) -> Any:
        source = self._open(name)
        return nullcontext(None) if source is None else source

    def _problem(self, shown: str, size: int) -> str | None:
        if not shown.lower().endswith(SUFFIXES):
            return f"expected one of {', '.join(SUFFIXES)}"
        if size > self.max_bytes:
            return f"{size} bytes; corpus.max_file_bytes is {self.max_bytes}"
        return None


class Folder(InboxStore):
    """An inbox in a local folder."""

    def __init__(self, folder: Path, held: Path, max_bytes: int) -> None:
        super().__init__(held, max_bytes)
        self.folder = folder
        self._real: dict[str, str] = {}

    def look(self) -> dict[str, Seen]:
        files = {}
        self._real = {as_text(name): name for name in self._names()}
        for shown, name in sorted(self._real.items()):
            try:
                status = (self.folder / name).lstat()
            except FileNotFoundError:
                continue
            problem = self._problem(shown, status.st_size)
            if stat.S_ISLNK(status.st_mode):
                problem = "a link; drop the file itself"
            elif not stat.S_ISREG(status.st_mode):
                problem = "not a plain file"
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            cut_off = problem is None and _is_cut_off(self.folder / name)
            files[shown] = Seen(_stamp_of(status), size, problem, cut_off)
        return files

    def _names(self) -> Iterator[str]:
        names = file_names(self.folder) if self.folder.is_dir() else iter(())
        return (name for name in names if name not in IGNORED)

    def _open(self, name: str) -> BinaryIO | None:
        try:  # O_NOFOLLOW and O_NONBLOCK: the file may have been replaced by a link or a pipe
            descriptor = os.open(self.folder / self._real.get(name, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return cast(BinaryIO, os.fdopen(descriptor, "rb"))

    def _stamp(self, name: str) -> str | None:
        try:
            return _stamp_of((self.folder / self._real.get(name, name)).lstat())
        except OSError:
            return None


class Remote(InboxStore):
    """An inbox that fsspec opens. Its objects are complete when they appear."""

    def __init__(self, url: str, held: Path, max_bytes: int) -> None:
        super().__init__(held, max_bytes)
        self.url = url

    def _filesystem(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            files, path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ImportError(
                f"params.yaml corpus.inbox: {self.url}: {error}. For S3: {install_command('s3')}; for "
                "others, the package that fsspec names"
            ) from error
        return files, str(path).rstrip("/")

    def _explained(self) -> AbstractContextManager[None]:
        """Turn errors of the network into sentences; other errors than S3's are the system's already."""
        return explained(self.url) if self.url.startswith(SCHEME) else nullcontext()

    def hold(self, name: str) -> str | None:
        with self._explained():
            return super().hold(name)

    def look(self) -> dict[str, Seen]:
        files, root = self._filesystem()
        files.invalidate_cache()
        try:
            with self._explained():
                listed = sorted(files.find(root, detail=True).items())
        except OSError as error:
            raise OSError(f"params.yaml corpus.inbox: {self.url}: {error}") from error
        listing = {}
        for path, info in listed:
            name = path.removeprefix(root).lstrip("/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            if info.get("type") != "file" or hidden or is_unfinished(name) or name in IGNORED:
                continue
            size = int(info.get("size") or 0)
            problem = "a name that leads out of the inbox" if ".." in name.split("/") else self._problem(name, size)
            listing[name] = Seen(str(files.ukey(path)), size, problem)
        return listing

    def _open(self, name: str) -> BinaryIO | None:
        files, root = self._filesystem()
        try:
            return cast(BinaryIO, files.open(f"{root}/{name}", "rb"))
        except FileNotFoundError:
            return None

    def _stamp(self, name: str) -> str | None:
        files, root = self._filesystem()
        files.invalidate_cache()
        try:
            return str(files.ukey(f"{root}/{name}"))
        except FileNotFoundError:
            return None


def store_of(inbox: str, root: Path, max_bytes: int) -> InboxStore:
    """The store of the inbox in params.yaml: a URL, or a folder, absolute or relative to the workspace."""
    held = root / ".plumbline" / "inbox"
    if "://" in inbox:
        return Remote(inbox, held, max_bytes)
    return Folder(root / Path(inbox).expanduser(), held, max_bytes)


def _stamp_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}-{stat.S_IFMT(status.st_mode)}"


def _is_cut_off(path: Path) -> bool:
    """Whether a Parquet file lacks its footer, or the last line of a JSON file is incomplete."""
    suffix = path.name.lower()
    if not suffix.endswith((".parquet", ".jsonl")):
        return False
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            tail = file.read()
    except OSError:
        return True
    if suffix.endswith(".parquet"):
        return not tail.endswith(b"PAR1")
    return bool(tail) and not tail.endswith(b"\n") and not tail.rstrip().endswith(b"}")
