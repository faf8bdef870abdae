from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import read_json
from plumbline.raw_corpus import shards as shards_module
from plumbline.raw_corpus.document import document_id
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.reader import documents, shards
from plumbline.raw_corpus.sources import directory
from tests.helpers.rejected import rejected_rows

Ingest = Callable[..., tuple[Path, dict[str, Any]]]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(corpus: Path) -> list[str | None]:
    return [document.text for shard in shards(corpus) for document in documents(corpus, shard)]


def rejected(corpus: Path) -> set[tuple[str, int | None, str]]:
    return {(row["file"], row["row"], row["reason"]) for row in rejected_rows(corpus)}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_format_gives_its_documents(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.txt", "\ufeffplain\r\ntext")
    write(tmp_path / "docs/b.MD", "# mark")
    write(tmp_path / "docs/law/c.jsonl", '{"text": "one"}\n{"text": "two", "other": 1}')
    write(tmp_path / "docs/law/d.jsonl.gz", gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "docs/e.parquet").parent.mkdir(exist_ok=True)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    pq.write_table(pa.table({"text": ["four", None], "messages": [None, chat]}), tmp_path / "docs/e.parquet")
    corpus, summary = ingest(tmp_path)
    found = [d for shard in shards(corpus) for d in documents(corpus, shard)]
    assert [(d.source, d.row, d.domain, d.text) for d in found] == [
        ("docs/a.txt", 0, "docs", "plain\r\ntext"),
        ("docs/b.MD", 0, "docs", "# mark"),
        ("docs/e.parquet", 0, "docs", "four"),
        ("docs/e.parquet", 1, "docs", None),
        ("docs/law/c.jsonl", 0, "law", "one"),
        ("docs/law/c.jsonl", 1, "law", "two"),
        ("docs/law/d.jsonl.gz", 0, "law", "three"),
    ]
    assert found[3].messages == tuple(chat)
    assert summary["documents"] == summary["rows"] == 7 and summary["rejected"] == {}
    assert summary["documents_by_source"] == {"docs": 7, "inbox": 0}


def test_bad_rows_are_set_aside_with_the_reason(tmp_path: Path, ingest: Ingest) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": ',  # 1 broken_json
        b'["text"]',  # 2 wrong_type
        b'{"txt": "x"}',  # 3 wrong_type: no such field
        b'{"text": 3}',  # 4 wrong_type
        b'{"text": "  \\n"}',  # 5 empty
        b'{"text": null}',  # 6 empty
        b'{"text": "\xff"}',  # 7 not_utf8
        b'{"text": "\\ud800"}',  # 8 not_utf8: a lone surrogate
        b'{"text": "' + b"x" * 101 + b'"}',  # 9 oversize
        b'{"text": "good"}',  # 10 duplicate
        b"",  # 11 empty
        b'{"messages": [{"role": "user"}]}',  # 12 wrong_type
        b'{"messages": "hello"}',  # 13 wrong_type
        b'{"messages": [{"role": "user", "content": null}]}',  # 14 wrong_type
        b'{"messages": []}',  # 15 empty
        b'{"text": ' + b"[" * 100_000,  # 16 oversize line
        b"[" * 50_000,  # 17 nested too deep to parse
    ]
    write(tmp_path / "docs/x.jsonl", b"\n".join(lines))
    write(tmp_path / "docs/big.txt", "y" * 101)
    corpus, summary = ingest(tmp_path, max_document_bytes=100)
    x = {(row, reason) for file, row, reason in rejected(corpus) if file == "docs/x.jsonl"}
    assert x == {
        *((i, "wrong_type") for i in (2, 3, 4, 12, 13, 14)),
        *((i, "empty") for i in (5, 6, 11, 15)),
        (1, "broken_json"),
        (17, "broken_json"),
        (7, "not_utf8"),
        (8, "not_utf8"),
        (9, "oversize"),
        (16, "oversize"),
        (10, "duplicate"),
    }
    assert ("docs/big.txt", 0, "oversize") in rejected(corpus)
    assert texts(corpus) == ["good"]
    assert summary["rows"] == len(lines) + 1 == summary["documents"] + sum(summary["rejected"].values())


def test_files_that_cannot_be_read_are_one_rejected_row(tmp_path: Path, ingest: Ingest) -> None:
    whole = gzip.compress("".join(f'{{"text": "{i}"}}\n' for i in range(5000)).encode())
    write(tmp_path / "docs/cut.jsonl.gz", whole[:-200])
    write(tmp_path / "docs/not.parquet", b"PAR1 this is none")
    write(tmp_path / "docs/scan.pdf", b"%PDF")
    (tmp_path / "docs/gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "docs/folder").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "docs/good.txt", "good")
    corpus, summary = ingest(tmp_path)
    assert rejected(corpus) == {
        ("docs/cut.jsonl.gz", None, "unreadable"),
        ("docs/not.parquet", None, "unreadable"),
        ("docs/scan.pdf", None, "unsupported"),
        ("docs/gone.txt", None, "unreadable"),
        ("docs/folder", None, "unsupported"),
    }
    assert texts(corpus) == ["good"], "rows before the fault in a broken file are not used"
    assert summary["rows"] == 6


def test_parquet_rows_that_are_not_utf8_cost_themselves_only(tmp_path: Path, ingest: Ingest) -> None:
    (tmp_path / "docs").mkdir()
    raw = pa.array([b"fine", b"\xff\xfe", b"also fine"])
    text = pa.StringArray.from_buffers(
        3, raw.buffers()[1], raw.buffers()[2]
    )  # a string column with bytes that are none
    roles = pa.array(["user"] * 3)
    chat = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([roles, text], ["role", "content"]))
    pq.write_table(pa.table({"text": text}), tmp_path / "docs/a.parquet")
    pq.write_table(pa.table({"messages": chat}), tmp_path / "docs/b.parquet")
    pq.write_table(pa.table({"body": [1, 2]}), tmp_path / "docs/c.parquet")
    corpus, _ = ingest(tmp_path)
    assert texts(corpus) == ["fine", "also fine", None, None]
    assert rejected(corpus) == {
        ("docs/a.parquet", 1, "not_utf8"),
        ("docs/b.parquet", 1, "not_utf8"),
        ("docs/c.parquet", 0, "wrong_type"),
        ("docs/c.parquet", 1, "wrong_type"),
    }


def test_hidden_and_unfinished_files_are_passed_over(tmp_path: Path, ingest: Ingest) -> None:
    for name in (".hidden.txt", ".git/x.txt", "a.txt.part", "b.tmp", "c.txt~"):
        write(tmp_path / "docs" / name, "never")
    write(tmp_path / "docs/README.md", "read")
    write(tmp_path / "inbox/README.md", "what the inbox is for")
    write(tmp_path / "inbox/sub/README.md", "dropped in")
    write(tmp_path / "inbox/x.txt", "dropped")
    corpus, _ = ingest(tmp_path)
    assert texts(corpus) == ["read", "dropped in", "dropped"]


def test_duplicates_across_files_are_counted_and_skipped(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n')
    write(tmp_path / "docs/b.jsonl", '{"text": "two"}\n{"text": "three"}\n')
    write(tmp_path / "docs/c.txt", "one")
    corpus, _ = ingest(tmp_path)
    assert texts(corpus) == ["one", "two", "three"]
    manifest = read_json(corpus / "manifest.json")
    assert [(s["rows"], s["documents"], s["duplicates"], s["rejected"]) for s in manifest["shards"]] == [
        (3, 2, 0, {"duplicate": 1}),
        (2, 1, 1, {"duplicate": 1}),
        (1, 0, 1, {"duplicate": 1}),
    ]
    assert manifest["totals"] == {"rows": 6, "documents": 3, "rejected": {"duplicate": 3}}
    table = pq.read_table(corpus / "duplicates.parquet").to_pylist()
    assert [(r["row"], r["first_source"]) for r in table] == [(0, "docs/a.jsonl"), (0, "docs/a.jsonl")]


def test_only_changed_files_are_parsed_again(tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    read_file = directory.read_file
    monkeypatch.setattr(directory, "read_file", lambda path, *rest: parsed.append(path.name) or read_file(path, *rest))
    for name in "abc":
        write(tmp_path / f"docs/{name}.txt", f"text of {name}")
    write(tmp_path / "docs/d.jsonl", '{"text": "text of a"}\nbroken\n')
    first, _ = ingest(tmp_path)
    assert parsed == ["a.txt", "b.txt", "c.txt", "d.jsonl"]
    parsed.clear()
    write(tmp_path / "docs/b.txt", "new text of b")
    write(tmp_path / "docs/0.txt", "text of a")  # sorts first: now a.txt and the row of d.jsonl are its duplicates
    (tmp_path / "docs/c.txt").unlink()
    second, summary = ingest(tmp_path, first)
    assert parsed == ["0.txt", "b.txt"] and summary["reused_shards"] == 2
    scratch, _ = ingest(tmp_path)
    assert tree(second) == tree(scratch), "reuse must not be visible in the artifact"
    third, summary = ingest(tmp_path, second)
    assert tree(third) == tree(second) and summary["reused_shards"] == 4


def test_a_shard_that_the_previous_version_lost_is_made_again(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.txt", "text")
    first, _ = ingest(tmp_path)
    expected = tree(first)
    shards_module.shard_path(first, shards(first)[0]).unlink()
    second, summary = ingest(tmp_path, first)
    assert tree(second) == expected and summary["reused_shards"] == 0


def test_reader_options_make_another_shard(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.jsonl", '{"text": "x", "body": "y"}')
    first, _ = ingest(tmp_path)
    source = {"kind": "directory", "path": "docs", "column": "body"}
    second, summary = ingest(tmp_path, first, sources={"docs": source})
    assert texts(second) == ["y"] and summary["reused_shards"] == 0


def test_the_artifact_does_not_know_where_it_was_made(tmp_path: Path, ingest: Ingest) -> None:
    for place in ("here", "there"):
        write(tmp_path / place / "docs/a.jsonl", '{"text": "x"}\nbad\n')
        write(tmp_path / place / "docs/broken.parquet", "no")
    here, there = ingest(tmp_path / "here")[0], ingest(tmp_path / "there")[0]
    assert tree(here) == tree(there)
    assert not any(str(tmp_path).encode() in content for content in tree(here).values())


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path, ingest: Ingest) -> None:
    good = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(18))
    write(tmp_path / "docs/good.jsonl", good * 2)  # duplicates and blank rows do not count against the limit
    write(tmp_path / "docs/bad.jsonl", "nonsense\n")
    ingest(tmp_path, max_rejected=1 / 37)
    write(tmp_path / "docs/bad.jsonl", "\nnonsense\nnonsense\n")
    with pytest.raises(ValueError, match=r"2 of 39 rows.*5\.1 %.*docs/bad\.jsonl, 2 of 3 rows, broken_json.*row 1"):
        ingest(tmp_path, max_rejected=0.0510)


def test_errors_say_what_to_do(tmp_path: Path, ingest: Ingest) -> None:
    with pytest.raises(FileNotFoundError, match=r"corpus\.sources\.docs\.path: 'docs' does not exist"):
        ingest(tmp_path)
    (tmp_path / "docs").mkdir()
    with pytest.raises(ValueError, match="corpus is empty"):
        ingest(tmp_path)
    with pytest.raises(ValueError, match="taken by the inbox"):
        ingest(tmp_path, sources={"inbox": {"kind": "directory", "path": "docs"}})


def test_altered_shards_are_noticed(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.txt", "text")
    corpus, _ = ingest(tmp_path)
    path = shards_module.shard_path(corpus, shards(corpus)[0])
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "text", pa.array(["forged"])), path)
    with pytest.raises(ValueError, match="altered"):
        texts(corpus)


def test_memory_does_not_grow_with_a_file(tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "ROW_GROUP_ROWS", 10)
    write(tmp_path / "docs/a.jsonl", "".join(json.dumps({"text": str(i)}) + "\n" for i in range(95)))
    corpus, _ = ingest(tmp_path)
    path = shards_module.shard_path(corpus, shards(corpus)[0])
    assert pq.read_metadata(path).num_row_groups == 10
    assert texts(corpus) == [str(i) for i in range(95)]


def test_unchanged_files_are_not_even_hashed(tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from plumbline.raw_corpus import file_hashes

    read: list[str] = []
    sha256_file = file_hashes.sha256_file
    monkeypatch.setattr(file_hashes, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    old, young = write(tmp_path / "docs/old.txt", "old"), write(tmp_path / "docs/young.txt", "young")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    memory = tmp_path / "state" / "hashes.json"
    first, _ = ingest(tmp_path, hashes=FileHashes(memory))
    assert read == ["old.txt", "young.txt"]
    read.clear()
    second, _ = ingest(tmp_path, hashes=FileHashes(memory))
    assert read == ["young.txt"], "a file that was just written may change without a new time stamp"
    assert tree(first) == tree(second)
    write(old, "new")  # same size
    os.utime(old, (1_000_000_001, 1_000_000_001))
    os.utime(young, (1_000_000_000, 1_000_000_000))
    read.clear()
    third, _ = ingest(tmp_path, hashes=FileHashes(memory))
    assert texts(third) == ["new", "young"] and read == ["old.txt", "young.txt"]
    memory.write_text("{half a")
    assert FileHashes(memory).sha256(old) == sha256_file(old)


PRODUCTION = {"kind": "directory", "path": "traffic"}


def test_production_comes_first_and_keeps_what_it_shares(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    write(tmp_path / "traffic/z.jsonl", '{"text": "two"}\n{"text": "three"}\n')
    corpus, summary = ingest(tmp_path, production=PRODUCTION)
    found = [(d.source, d.text) for shard in shards(corpus) for d in documents(corpus, shard)]
    assert found == [("production/z.jsonl", "two"), ("production/z.jsonl", "three"), ("docs/a.jsonl", "one")]
    assert pq.read_table(corpus / "duplicates.parquet").to_pylist() == [
        {"shard": shards(corpus)[1], "row": 1, "doc_id": document_id("two", None), "first_source": "production/z.jsonl"}
    ]
    assert summary["rejected"] == {"duplicate": 1} and summary["rows"] == 4
    assert summary["documents_by_source"] == {"production": 2, "docs": 1, "inbox": 0}
    assert read_json(corpus / "manifest.json")["sources"] == ["production", "docs", "inbox"]


def test_out_of_domain_texts_come_second(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    write(tmp_path / "traffic/z.jsonl", '{"text": "two"}\n{"text": "three"}\n')
    write(tmp_path / "news/n.jsonl", '{"text": "three"}\n{"text": "one"}\n')
    news = {"kind": "directory", "path": "news"}
    corpus, _ = ingest(tmp_path, production=PRODUCTION, out_of_domain=news)
    found = [(d.source, d.text) for shard in shards(corpus) for d in documents(corpus, shard)]
    assert found == [("production/z.jsonl", "two"), ("production/z.jsonl", "three"), ("out_of_domain/n.jsonl", "one")]
    with pytest.raises(FileNotFoundError, match=r"corpus\.out_of_domain\.path: 'nowhere' does not exist"):
        ingest(tmp_path, out_of_domain={"kind": "directory", "path": "nowhere"})
    with pytest.raises(ValueError, match=r"corpus\.sources\.out_of_domain: the name is taken by corpus\.out_of_domain"):
        ingest(tmp_path, sources={"out_of_domain": news})


def test_production_comes_and_goes_without_reading_the_rest_again(tmp_path: Path, ingest: Ingest) -> None:
    write(tmp_path / "docs/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    write(tmp_path / "traffic/z.txt", "two")
    without, summary = ingest(tmp_path)
    assert "production" not in summary["documents_by_source"]
    with_it, summary = ingest(tmp_path, without, production=PRODUCTION)
    assert summary["reused_shards"] == 1 and summary["shards"] == 2
    assert tree(with_it) == tree(ingest(tmp_path, production=PRODUCTION)[0])
    again, summary = ingest(tmp_path, with_it)
    assert tree(again) == tree(without) and summary["reused_shards"] == 1


def test_production_may_be_of_any_kind(tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.raw_corpus.sources import python_stdlib

    monkeypatch.setattr(python_stdlib, "code_and_prose", lambda: iter([("alpha", "Alpha.", "x = 1\n")]))
    corpus, summary = ingest(tmp_path, sources={}, production={"kind": "python_stdlib"})
    assert summary["documents_by_source"]["production"] == summary["documents"] > 0
    assert read_json(corpus / "manifest.json")["python"] is not None
    with pytest.raises(ValueError, match=r"corpus\.production\.revision: expected the 40 hex digits"):
        ingest(tmp_path, production={"kind": "huggingface", "name": "some/where", "revision": "main"})
    with pytest.raises(FileNotFoundError, match=r"corpus\.production\.path: 'traffic' does not exist"):
        ingest(tmp_path, production=PRODUCTION)


@pytest.mark.parametrize("name", ["production", "production/more"])
def test_no_other_source_is_called_production(tmp_path: Path, ingest: Ingest, name: str) -> None:
    """Its documents would become production's: the split goes by the source's name."""
    with pytest.raises(ValueError, match=rf"corpus\.sources\.{name}: the name is taken by corpus\.production"):
        ingest(tmp_path, sources={name: PRODUCTION})


@pytest.mark.parametrize("listed", [["docs", "inbox"], ["docs", "inbox", "traffic"], ["docs", ".", "inbox"]])
def test_every_folder_must_be_listed_in_dvc_yaml(tmp_path: Path, listed: list[str]) -> None:
    from types import SimpleNamespace
    from typing import cast

    from plumbline.graph.declared import require_declared
    from plumbline.graph.step import Step
    from plumbline.raw_corpus.params import CorpusParams

    sources = {"docs": {"kind": "directory", "path": "docs"}}
    params = CorpusParams.model_validate({"sources": sources, "production": PRODUCTION})
    step = cast(Step, SimpleNamespace(name="raw_corpus", root=tmp_path, inputs=dict.fromkeys(listed, "")))
    if len(listed) == 3:
        require_declared(step, params.folders())
    else:
        with pytest.raises(ValueError, match="source 'production' reads traffic, which dvc.yaml does not list"):
            require_declared(step, params.folders())
