"""Where an inbox lies: a folder of this machine, or anything that fsspec opens (`s3://bucket/prefix`, `gs://...`)."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from plumbline.artifact import sha256_file
from plumbline.raw_corpus.sources.names import SUFFIXES, file_names, is_unfinished

IGNORED = ("README.md",)
"""Tells people what the inbox is for; no document."""
CHUNK = 1 << 20
TAIL = 1 << 16


@dataclass(frozen=True)
class Seen:
    """A file as it lies in the inbox."""

    stamp: str
    """Changes when the file does."""
    bytes: int
    problem: str | None = None
    """Why it will not be read."""
    cut_off: bool = False
    """Its end is not one that its format has: more is likely to come."""


class Store(ABC):
    """An inbox, and the folder where copies of its files are held under the SHA-256 of their content."""

    def __init__(self, held: Path, max_bytes: int) -> None:
        self.held, self.max_bytes = held, max_bytes

    @abstractmethod
    def look(self) -> dict[str, Seen]:
        """The files by name, in order; none that is hidden, unfinished by its name, or the README.

        Raises:
            OSError, ImportError: the inbox cannot be listed; the message says what to do.
        """

    @abstractmethod
    def _open(self, name: str) -> BinaryIO | None:
        """The bytes of a file; None: it is gone, or not a plain file any more."""

    @abstractmethod
    def _stamp(self, name: str) -> str | None:
        """As in `Seen`, asked anew."""

    def place(self, sha256: str) -> Path:
        """Where content is held."""
        return self.held / sha256

    def hold(self, name: str) -> str | None:
        """Copy a file to where it is held; returns its SHA-256, or None if it changed meanwhile.

        Raises:
            OSError: the inbox does not answer.
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
            except OSError:  # a store may refuse to read on where an object was replaced
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
        """Where this content is held; brought back from the inbox if it is not, whatever its name there is now."""
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
        import contextlib

        source = self._open(name)
        return contextlib.nullcontext(None) if source is None else source

    def _problem(self, shown: str, size: int) -> str | None:
        if not shown.lower().endswith(SUFFIXES):
            return f"expected one of {', '.join(SUFFIXES)}"
        if size > self.max_bytes:
            return f"{size} bytes; corpus.max_file_bytes is {self.max_bytes}"
        return None


class Folder(Store):
    """A folder of this machine."""

    def __init__(self, folder: Path, held: Path, max_bytes: int) -> None:
        super().__init__(held, max_bytes)
        self.folder = folder
        self._real: dict[str, str] = {}

    def look(self) -> dict[str, Seen]:
        found = {}
        self._real = {_shown(name): name for name in self._names()}
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
            found[shown] = Seen(_stamp_of(status), size, problem, cut_off)
        return found

    def _names(self) -> Iterator[str]:
        names = file_names(self.folder) if self.folder.is_dir() else iter(())
        return (name for name in names if name not in IGNORED)

    def _open(self, name: str) -> BinaryIO | None:
        try:  # a link or a pipe that took the file's place since it was looked at is not opened, nor waited for
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


class Remote(Store):
    """A place that fsspec opens. An object there is complete when it appears."""

    def __init__(self, url: str, held: Path, max_bytes: int) -> None:
        super().__init__(held, max_bytes)
        self.url = url

    def _filesystem(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            files, path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ImportError(
                f"params.yaml corpus.inbox: {self.url}: {error}. For S3: pip install -c constraints.txt "
                "-e '.[s3]'; for others, the package that fsspec names"
            ) from error
        return files, str(path).rstrip("/")

    def look(self) -> dict[str, Seen]:
        files, root = self._filesystem()
        files.invalidate_cache()
        try:
            listed = sorted(files.find(root, detail=True).items())
        except OSError as error:
            raise OSError(f"params.yaml corpus.inbox: {self.url}: {error}") from error
        found = {}
        for path, info in listed:
            name = path.removeprefix(root).lstrip("/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            if info.get("type") != "file" or hidden or is_unfinished(name) or name in IGNORED:
                continue
            size = int(info.get("size") or 0)
            problem = "a name that leads out of the inbox" if ".." in name.split("/") else self._problem(name, size)
            found[name] = Seen(str(files.ukey(path)), size, problem)
        return found

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


def store_of(inbox: str, root: Path, max_bytes: int) -> Store:
    """The inbox as params.yaml names it: a URL, or a folder, absolute or relative to the project."""
    held = root / ".plumbline" / "inbox"
    if "://" in inbox:
        return Remote(inbox, held, max_bytes)
    return Folder(root / Path(inbox).expanduser(), held, max_bytes)


def _stamp_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}-{stat.S_IFMT(status.st_mode)}"


def _shown(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_cut_off(path: Path) -> bool:
    """Whether a Parquet file lacks its footer, or a line of JSON at the end its rest."""
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
