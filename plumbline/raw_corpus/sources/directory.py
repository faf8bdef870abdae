"""Every readable file below a folder: `.txt`, `.md` (a document each), `.jsonl`, `.jsonl.gz`, `.parquet` (rows)."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.raw_corpus.chats import without_nulls
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.file_hashes import FileHashes, stamp
from plumbline.raw_corpus.params import Directory
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected, SourceFile, UnreadableFile
from plumbline.raw_corpus.sources.names import SUFFIXES, as_text, file_names, suffix_of

BATCH_ROWS = 256  # rows of a Parquet file in memory at a time


def source_files(
    name: str,
    source: Directory,
    folder: Path,
    max_document_bytes: int,
    hashes: FileHashes,
) -> Iterator[SourceFile]:
    """The files of a folder (or the one file that `folder` is), in order of their path.

    Hidden and unfinished files are skipped. Files with another suffix, broken links, links to folders and special files
    are rejected.
    """
    single = folder.is_file()
    for relative in [folder.name] if single else sorted(file_names(folder)):
        path = folder if single else folder / relative
        shown = as_text(relative)
        domain = source.domain or domain_of(shown, name)
        suffix = suffix_of(shown)
        problem = None
        if path.is_dir():
            problem = "a link to a folder is not followed; make that folder a source of its own in params.yaml"
        elif not path.exists():
            problem = "a link that leads nowhere"
        elif not path.is_file():
            problem = "not a plain file"  # reading a pipe would block
        elif suffix is None:
            problem = f"expected one of {', '.join(SUFFIXES)}"
        if problem is not None:
            reason = "unreadable" if suffix and not path.exists() else "unsupported"
            size = path.stat().st_size if path.is_file() else 0
            yield SourceFile(shown, None, size, {"rejected": reason}, rejected(reason, problem))
            continue
        reader = RowReader(f"{name}/{shown}", domain, max_document_bytes, source.column, source.read, source.chat)
        options = {"domain": domain, "max_document_bytes": max_document_bytes, **reader.options()}
        try:
            before = stamp(path)
            digest = hashes.sha256(path)
        except OSError as error:  # no permission, or a fault of the disk
            why = f"{type(error).__name__}: {error.strerror}"
            yield SourceFile(shown, None, 0, {"rejected": why}, rejected("unreadable", why))
            continue
        yield SourceFile(shown, digest, before[0], options, reading(path, cast(str, suffix), reader, before))


def domain_of(name: str, source: str) -> str:
    """The first folder of a file's name within its source; the source's name for a file without a folder."""
    first, slash, _ = name.partition("/")
    return first if slash else source


def rejected(reason: str, detail: str) -> Callable[[], Iterator[Rejected]]:
    return lambda: iter([Rejected(None, reason, detail)])


def reading(
    path: Path, suffix: str, reader: RowReader, before: tuple[int, int, int], max_bytes: int | None = None
) -> Callable[[], Iterator[Document | Rejected]]:
    """A function that streams the rows of a file whose stamp is `before`.

    Raises (when read):
        UnreadableFile: the file is not what its suffix says. RuntimeError: it changed while it was read.
    """

    def read() -> Iterator[Document | Rejected]:
        problem: Exception | None = None
        try:
            yield from read_file(path, suffix, reader, max_bytes)
        except Exception as error:  # a broken file can make a reader raise anything
            if isinstance(error, MemoryError) and not isinstance(error, pa.ArrowException):
                raise  # this machine is at fault, not the file
            problem = error
        if _changed(path, before):
            raise RuntimeError(f"{path} changed while it was ingested; run again when whatever writes it has finished")
        if isinstance(problem, UnreadableFile):
            raise problem
        if problem is not None:
            raise UnreadableFile(_shown(problem, path)) from problem

    return read


def _changed(path: Path, before: tuple[int, int, int]) -> bool:
    try:
        return stamp(path) != before
    except OSError:
        return True


def _shown(error: Exception, path: Path) -> str:
    """The error without the folder, which would make the artifact differ between machines."""
    text = str(error).replace(str(path), path.name)[:300]
    return f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace").decode()


def read_file(
    path: Path, suffix: str, reader: RowReader, max_bytes: int | None = None
) -> Iterator[Document | Rejected]:
    """Stream the rows of one file.

    Args:
        max_bytes: a compressed file may unpack to; None: to anything.

    Raises:
        UnreadableFile: a compressed file unpacks to more, or a Parquet file contradicts itself.
        Exception: the file is not what its suffix says; which error depends on the reader.
    """
    if suffix in (".txt", ".md"):
        if (size := path.stat().st_size) > reader.max_document_bytes:  # not read: it need not fit into memory
            yield Rejected(0, "oversize", f"{size} bytes; corpus.max_document_bytes is {reader.max_document_bytes}")
        else:
            yield reader.text(0, path.read_bytes())
    elif suffix == ".parquet":
        yield from _parquet_rows(path, reader)
    else:
        with gzip.open(path) if suffix == ".jsonl.gz" else path.open("rb") as file:
            lines = cast(BinaryIO, file if max_bytes is None else _AtMost(cast(BinaryIO, file), max_bytes))
            yield from reader.json_lines(lines)


class _AtMost:
    """Reads lines of a file up to a number of bytes, since a small archive may unpack to a huge file."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit, self.seen = file, limit, 0

    def readline(self, size: int) -> bytes:
        line = self.file.readline(size)
        self.seen += len(line)
        if self.seen > self.limit:
            raise UnreadableFile(f"more than {self.limit} bytes when unpacked; corpus.max_file_bytes is {self.limit}")
        return line


def _parquet_rows(path: Path, reader: RowReader) -> Iterator[Document | Rejected]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        columns = reader.columns(names)
        groups = sum(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        if groups != file.metadata.num_rows:  # a forged number would otherwise be counted up to
            raise UnreadableFile(f"its footer says {file.metadata.num_rows} rows, its row groups have {groups}")
        for column in columns:
            if (times := names.count(column)) > 1:
                raise UnreadableFile(f"the column {column!r} is there {times} times; keep the one that is meant")
        if not columns:
            detail = f"no column {reader.column!r} and no chat; columns: {', '.join(names)}"[:300]
            for row in range(file.metadata.num_rows):
                yield Rejected(row, "wrong_type", detail)
            return
        row = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            values = {c: _python_values(batch.column(c)) for c in columns}
            for i in range(batch.num_rows):
                yield reader.value(row, {c: values[c][i] for c in columns})
                row += 1


def _python_values(column: pa.Array) -> list[object]:
    """Values of a column; texts as bytes, so that invalid UTF-8 rejects its row and not the batch."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    try:
        return [without_nulls(value) for value in column.to_pylist()]
    except UnicodeDecodeError:  # in a chat; convert row by row
        return [_python_value(item) for item in column]


def _python_value(item: pa.Scalar) -> object:
    try:
        return cast(object, without_nulls(item.as_py()))
    except UnicodeDecodeError:
        return b"\xff"
