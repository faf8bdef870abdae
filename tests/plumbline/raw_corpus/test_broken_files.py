"""A broken file is held back, whole and named, and every file beside it is read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumbline.raw_corpus.reader import documents, shards
from plumbline.raw_corpus.sources import directory
from plumbline.raw_corpus.summary import summary as summary_of
from tests.helpers.rejected import rejected_rows

Ingest = Callable[..., tuple[Path, dict[str, Any]]]
DECADES = 2**62


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def chats(*extra: tuple[str, pa.Array]) -> bytes:
    """Two chats of one message, with further fields."""
    fields = [("role", pa.array(["user", "user"])), ("content", pa.array(["a", "b"])), *extra]
    messages = pa.StructArray.from_arrays([values for _, values in fields], [name for name, _ in fields])
    return parquet(pa.table({"messages": pa.ListArray.from_arrays([0, 1, 2], messages)}))


BROKEN = {
    "a doubled column": parquet(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])),
    "a date beyond the range": chats(("when", pa.array([0, DECADES], pa.timestamp("us")))),
    "an unknown time zone": chats(("when", pa.array([0, 1], pa.timestamp("us", "Mars/Olympus")))),
    "a time of day beyond the range": chats(("at", pa.array([0, DECADES], pa.time64("us")))),
    "a doubled field of a struct": chats(("content", pa.array(["c", "d"]))),
    "no Parquet": b"PAR1 nothing of the kind PAR1",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("folder", ["docs", "inbox"])
def test_a_broken_parquet_file_is_held_back_whole_and_named(
    tmp_path: Path, ingest: Ingest, kind: str, folder: str
) -> None:
    for name in ("docs", "inbox"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.txt").write_text(f"a good text of {name}")
    (tmp_path / folder / "broken.parquet").write_bytes(BROKEN[kind])
    corpus, summary = ingest(tmp_path, max_rejected=0.05)  # 1 file of 3 is not held against the others
    assert [d.text for shard in shards(corpus) for d in documents(corpus, shard)] == [
        "a good text of docs",
        "a good text of inbox",
    ]
    [row] = rejected_rows(corpus)
    assert (row["file"], row["row"], row["reason"]) == (f"{folder}/broken.parquet", None, "unreadable")
    assert row["detail"] and str(tmp_path) not in row["detail"]
    assert [held["file"] for held in summary["quarantine"]] == [f"{folder}/broken.parquet"]
    again, _ = ingest(tmp_path, corpus)
    assert summary_of(again) == summary_of(corpus)


WHOLE = parquet(
    pa.table(
        {
            "text": ["one text", "another text", None, "a third"],
            "messages": [None, None, [{"role": "user", "content": "hello"}], None],
            "n": [1, 2, 3, 4],
        }
    )
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=3),
    st.none() | st.integers(0, len(WHOLE)),
)
def test_any_damage_to_a_parquet_file_is_counted(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]], cut: int | None
) -> None:
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams

    root = tmp_path_factory.mktemp("damaged")
    data = bytearray(WHOLE[:cut])
    for at, byte in damage:
        if at < len(data):
            data[at] = byte
    (root / "docs").mkdir(), (root / "out").mkdir()
    (root / "docs/damaged.parquet").write_bytes(bytes(data))
    (root / "docs/good.txt").write_text("a good text")
    params = {"sources": {"docs": {"kind": "directory", "path": "docs"}}, "max_rejected": 1.0}
    build_raw_corpus(CorpusParams.model_validate(params), root, root / "out")
    summary = summary_of(root / "out")
    assert "a good text" in [d.text for shard in shards(root / "out") for d in documents(root / "out", shard)]
    assert summary["rows"] == summary["documents"] + sum(summary["rejected"].values())
    if summary["rejected"].get("unreadable"):
        assert [held["file"] for held in summary["quarantine"]] == ["docs/damaged.parquet"]


class Odd(Exception):
    """An error that nobody foresaw."""


def test_any_error_of_any_reader_holds_its_file_back(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    read_file = directory.read_file

    def read(path: Path, *rest: Any) -> Iterator[Any]:
        yield from read_file(path, *rest)
        if path.name == "a.txt":
            raise Odd(f"in {path}")

    monkeypatch.setattr(directory, "read_file", read)
    corpus, _ = ingest(tmp_path)
    assert [(row["file"], row["detail"]) for row in rejected_rows(corpus)] == [("docs/a.txt", "Odd: in a.txt")]
    assert [d.text for shard in shards(corpus) for d in documents(corpus, shard)] == ["text of b.txt"]


def test_an_error_of_this_machine_is_no_fault_of_the_file(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus would be another one on a machine with more memory."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("text")

    def read(path: Path, *rest: Any) -> Iterator[Any]:
        raise MemoryError
        yield

    monkeypatch.setattr(directory, "read_file", read)
    with pytest.raises(MemoryError):
        ingest(tmp_path)

    def changing(path: Path, *rest: Any) -> Iterator[Any]:
        path.write_text("another text, written while the first was read")
        raise Odd
        yield

    monkeypatch.setattr(directory, "read_file", changing)
    with pytest.raises(RuntimeError, match=r"a\.txt changed while it was ingested"):
        ingest(tmp_path)


def test_a_file_that_may_not_be_read_is_held_back(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.raw_corpus import file_hashes

    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    sha256_file = file_hashes.sha256_file

    def digest(path: Path) -> str:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return sha256_file(path)

    monkeypatch.setattr(file_hashes, "sha256_file", digest)
    corpus, summary = ingest(tmp_path, max_rejected=0.05)
    [row] = rejected_rows(corpus)
    assert (row["file"], row["reason"], row["detail"]) == (
        "docs/a.txt", "unreadable", "PermissionError: Permission denied",
    )  # fmt: skip
    assert summary["documents"] == 1


def test_blank_rows_are_counted_and_not_held_against_a_file_or_the_corpus(tmp_path: Path, ingest: Ingest) -> None:
    """A third of the rows of wikitext are blank."""
    rows = "".join(f'{{"text": "text {n}"}}\n{{"text": ""}}\n{{"text": null}}\n\n' for n in range(10))
    for name in ("docs", "inbox"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(rows.replace("text ", f"{name} "))
    _, summary = ingest(tmp_path, max_rejected=0.0)
    assert summary["documents_by_source"] == {"docs": 10, "inbox": 10}
    assert summary["rejected"] == {"empty": 60} and summary["quarantine"] == []
    for name in ("docs", "inbox"):
        (tmp_path / name / f"{name}.jsonl").write_text("\n\n\n")
    with pytest.raises(ValueError, match="the corpus is empty: all 6 rows are blank"):
        ingest(tmp_path)
