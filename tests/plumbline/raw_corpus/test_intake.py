"""What is taken in from an inbox: by content, when it is complete, and nothing that is not a plain file."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import read_json, sha256_file
from plumbline.graph.step import as_metadata
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.intake import Intake, IntakeChanges, Taken, read_intake, take_in, write_intake
from plumbline.raw_corpus.params import CorpusParams
from plumbline.raw_corpus.stores import Folder, store_of
from plumbline.raw_corpus.summary import summary as summary_of
from tests.helpers.inbox import take_in_all
from tests.helpers.log import numbers_logged
from tests.helpers.rejected import rejected_rows


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "inbox").mkdir()
    store = store_of("inbox", tmp_path, 1000)
    assert isinstance(store, Folder)
    return store


def drop(store: Folder, **files: str) -> None:
    for name, text in files.items():
        (store.folder / f"{name}.txt").write_text(text)


def test_content_has_one_name_and_keeps_it(folder: Folder, tmp_path: Path) -> None:
    drop(folder, b="beta", a="alpha", c="alpha")
    first, changes = take_in_all(folder)
    assert list(first.files) == ["a.txt", "b.txt"]
    assert changes == IntakeChanges(added=("a.txt", "b.txt"), copies=("c.txt",))
    assert folder.place(str(first.files["a.txt"].sha256)).read_text() == "alpha"

    (folder.folder / "a.txt").unlink()  # content that is still there under another name stays what it was
    (folder.folder / "b.txt").rename(folder.folder / "z.txt")
    (folder.folder / "README.md").write_text("about the folder")
    again, changes = take_in_all(folder, first)
    assert again == first and not changes and changes.copies == ("c.txt", "z.txt")

    drop(folder, a="gamma", b="delta")  # the names have other content now: the old content goes by its other name
    third, changes = take_in_all(folder, again)
    assert {name: folder.place(str(t.sha256)).read_text() for name, t in third.files.items()} == {
        "a.txt": "gamma", "b.txt": "delta", "c.txt": "alpha", "z.txt": "beta",
    }  # fmt: skip
    assert changes == IntakeChanges(added=("c.txt", "z.txt"), changed=("a.txt", "b.txt"))
    for name in ("c", "z"):
        (folder.folder / f"{name}.txt").unlink()
    last, changes = take_in_all(folder, third)
    assert list(last.files) == ["a.txt", "b.txt"] and changes == IntakeChanges(removed=("c.txt", "z.txt"))
    path = tmp_path / "intake.yaml"
    write_intake(path, last)
    assert read_intake(path) == last
    path.write_text("files: [1]")
    with pytest.raises(ValueError, match="git checkout intake.yaml"):
        read_intake(path)


def test_what_is_being_written_waits_and_holds_up_nothing(folder: Folder) -> None:
    drop(folder, a="alpha", b="be")
    first, changes = take_in_all(folder, waiting=("b.txt",))
    assert list(first.files) == ["a.txt"] and changes == IntakeChanges(added=("a.txt",), waiting=("b.txt",))
    drop(folder, a="something else, half there")
    second, changes = take_in_all(folder, first, waiting=("a.txt",))
    assert second.files["a.txt"] == first.files["a.txt"] and changes == IntakeChanges(
        added=("b.txt",), waiting=("a.txt",)
    )

    looked = folder.look()
    before = folder._stamp

    def stamp(name: str) -> str | None:  # somebody writes while the file is copied
        found = before(name)
        drop(folder, a="longer and longer" * len(str(found)))
        return found

    folder._stamp = stamp  # type: ignore[method-assign]
    third, changes, contents = take_in(second, folder, looked, {"a.txt": None, "b.txt": second.files["b.txt"].sha256})
    assert third == second and changes.waiting == ("a.txt",) and list(contents) == ["b.txt"]
    assert not list(folder.held.glob(".*"))


def test_hostile_names_and_files_are_refused_unread(folder: Folder, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    (folder.folder / "link.txt").symlink_to(secret)
    (folder.folder / "dangling.txt").symlink_to("nowhere")
    (folder.folder / "folder.txt").symlink_to(tmp_path)
    os.mkfifo(folder.folder / "pipe.txt")
    (folder.folder / "program.exe").write_text("MZ")
    (folder.folder / "huge.txt").write_text("x" * 1001)
    (folder.folder / "new\nline.txt").write_text("fine")
    (folder.folder / os.fsdecode(b"\xff.txt")).write_text("fine, too")
    (folder.folder / ".hidden.txt").write_text("no")
    (folder.folder / "half.txt.part").write_text("no")
    intake, changes = take_in_all(folder)
    refused = {name: taken.refused for name, taken in intake.files.items() if taken.refused}
    assert refused == {
        "link.txt": "a link; drop the file itself",
        "dangling.txt": "a link; drop the file itself",
        "folder.txt": "a link; drop the file itself",
        "pipe.txt": "not a plain file",
        "program.exe": "expected one of .txt, .md, .jsonl, .jsonl.gz, .parquet",
        "huge.txt": "1001 bytes; corpus.max_file_bytes is 1000",
    }
    assert set(changes.added) == {"new\nline.txt", "\\xff.txt"} and set(changes.refused) == set(refused)
    write_intake(tmp_path / "intake.yaml", intake)
    assert read_intake(tmp_path / "intake.yaml") == intake
    assert folder.hold("link.txt") is None and folder.hold("pipe.txt") is None  # also when they came after the look


def test_a_file_that_ends_too_early_says_so(folder: Folder) -> None:
    pq.write_table(pa.table({"text": ["a"]}), folder.folder / "whole.parquet")
    (folder.folder / "half.parquet").write_bytes((folder.folder / "whole.parquet").read_bytes()[:-3])
    (folder.folder / "whole.jsonl").write_text('{"text": "a"}')
    (folder.folder / "half.jsonl").write_text('{"text": "a"}\n{"te')
    assert {name for name, seen in folder.look().items() if seen.cut_off} == {"half.parquet", "half.jsonl"}


def test_bad_files_of_the_inbox_are_held_back_and_stop_nothing(
    folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/one.txt").write_text("a document")
    bad = "".join(f'{{"text": "good {n}"}}\n{{"broken\n' for n in range(50))
    (folder.folder / "half-bad.jsonl").write_text(bad)
    (folder.folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 9)[:-9])
    (folder.folder / "program.exe").write_text("MZ")
    rows = [f'{{"text": "fine {n}"}}\n' for n in range(40)]
    (folder.folder / "nearly-good.jsonl").write_text("".join([*rows, "{\n"]))  # 1 bad row of 41: within the limit
    params = CorpusParams.model_validate({"sources": {"docs": {"kind": "directory", "path": "docs"}}})
    (tmp_path / "corpus").mkdir(), (tmp_path / "again").mkdir()
    build_raw_corpus(params, tmp_path, tmp_path / "corpus")
    summary = summary_of(tmp_path / "corpus")
    assert summary["documents_by_source"] == {"docs": 1, "inbox": 40}
    held_back = {of["file"]: (of["rows"], of["why"].split(":")[0], of["row"]) for of in summary["quarantine"]}
    assert len(as_metadata(summary)["quarantine"].records) == 3
    assert held_back == {
        "inbox/half-bad.jsonl": (100, "broken_json", 1),
        "inbox/cut.jsonl.gz": (1, "unreadable", ""),
        "inbox/program.exe": (1, "unsupported", ""),
    }
    totals = read_json(tmp_path / "corpus/manifest.json")["totals"]
    assert totals["rejected"] == {"broken_json": 51, "quarantined": 50, "unreadable": 1, "unsupported": 1}
    rejected = rejected_rows(tmp_path / "corpus")
    assert [row["detail"] for row in rejected if row["reason"] == "quarantined"] == ["50 good rows: 50 of 100 are bad"]
    caplog.set_level(logging.INFO, "plumbline")
    build_raw_corpus(params, tmp_path, tmp_path / "again", tmp_path / "corpus")
    assert summary_of(tmp_path / "again") == summary and numbers_logged(caplog, "took over") == [5, 5]
    assert sha256_file(tmp_path / "again/manifest.json") == sha256_file(tmp_path / "corpus/manifest.json")


def test_a_small_archive_of_a_large_file_is_held_back(folder: Folder, tmp_path: Path) -> None:
    row = b'{"text": "x"}\n'
    for name, rows in {"fits": 100, "bomb": 101}.items():
        (folder.folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(row * rows))
    params = CorpusParams.model_validate({"sources": {}, "max_file_bytes": 100 * len(row)})
    (tmp_path / "corpus").mkdir()
    build_raw_corpus(params, tmp_path, tmp_path / "corpus")
    summary = summary_of(tmp_path / "corpus")
    assert summary["documents"] == 1
    [held] = summary["quarantine"]
    assert held["file"] == "inbox/bomb.jsonl.gz" and "more than 1400 bytes when unpacked" in held["why"]


def test_what_was_taken_in_is_read_although_the_inbox_moved_on(folder: Folder, tmp_path: Path) -> None:
    drop(folder, a="alpha", b="beta")
    intake, _ = take_in_all(folder)
    drop(folder, a="being overwri")
    (folder.folder / "b.txt").rename(folder.folder / "c.txt")
    folder.place(str(intake.files["b.txt"].sha256)).unlink()  # as in a fresh clone
    params = CorpusParams.model_validate({"sources": {}})
    (tmp_path / "corpus").mkdir(), (tmp_path / "other").mkdir()
    build_raw_corpus(params, tmp_path, tmp_path / "corpus", intake=intake)
    summary = summary_of(tmp_path / "corpus")
    assert summary["documents_by_source"] == {"inbox": 2}
    shards = read_json(tmp_path / "corpus/manifest.json")["shards"]
    assert [(s["file"], s["sha256"]) for s in shards] == [(n, t.sha256) for n, t in intake.files.items()]
    gone = Intake({"x.txt": Taken("0" * 64, 5)})
    with pytest.raises(
        RuntimeError, match="inbox/x.txt was taken in, but neither its copy nor the file.*plumbline run"
    ):
        build_raw_corpus(params, tmp_path, tmp_path / "other", intake=gone)


def test_another_store_is_an_inbox_too(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for name, text in {"a.txt": "alpha", "sub/b.jsonl": '{"text": "beta"}\n', "README.md": "-", "x.exe": "MZ"}.items():
        files.pipe(f"/drop/{name}", text.encode())
    store = store_of("memory://drop", tmp_path, 1000)
    looked = store.look()
    intake, changes = take_in_all(store)
    assert changes == IntakeChanges(added=("a.txt", "sub/b.jsonl"), refused=("x.exe",))
    params = CorpusParams.model_validate({"sources": {}, "inbox": "memory://drop"})
    (tmp_path / "corpus").mkdir()
    files.rm("/drop/a.txt")
    build_raw_corpus(params, tmp_path, tmp_path / "corpus", intake=intake)
    assert summary_of(tmp_path / "corpus")["documents"] == 2
    files.pipe("/drop/sub/b.jsonl", b'{"text": "other"}\n')
    now, changes = take_in_all(store, intake)
    assert changes == IntakeChanges(changed=("sub/b.jsonl",), removed=("a.txt",))
    assert store.look()["sub/b.jsonl"].stamp != looked["sub/b.jsonl"].stamp
    assert now.files["x.exe"].refused and store.hold("a.txt") is None
    with pytest.raises(ImportError, match=r"corpus.inbox: nosuch://x.*pip install -c constraints.txt -e '\.\[s3\]'"):
        store_of("nosuch://x", tmp_path, 1).look()
    files.rm("/drop", recursive=True)
