"""The two sources that are no plain folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import read_json
from plumbline.raw_corpus.reader import documents, shards
from plumbline.raw_corpus.sources import python_stdlib
from plumbline.tokenized_samples.splits import split_of

Ingest = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of four modules in place of the interpreter's."""
    root = tmp_path / "lib"
    long = "Long prose. " * 20
    for name, source in {
        "alpha.py": f'"""{long}"""\nx = 1\n',
        "beta/__init__.py": "",
        "beta/gamma.py": '"""Short."""\ny = 2\n',
        "broken.py": "def (",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    monkeypatch.setattr(python_stdlib.sysconfig, "get_path", lambda name: str(root))
    return root


def test_python_stdlib_groups_prose_and_code_of_a_module(tmp_path: Path, small_library: Path, ingest: Ingest) -> None:
    corpus, summary = ingest(tmp_path, sources={"stdlib": {"kind": "python_stdlib"}})
    found = [d for shard in shards(corpus) for d in documents(corpus, shard)]
    own = {(d.source, d.group, d.domain) for d in found if d.group in ("alpha", "beta.gamma", "beta", "broken")}
    assert own == {
        ("stdlib/docstrings", "alpha", "prose"),
        ("stdlib/library", "alpha", "code"),
        ("stdlib/library", "beta.gamma", "code"),
    }
    topics = dict(python_stdlib.topics())
    assert {d.group for d in found if d.source == "stdlib/topics"} <= set(topics)
    builtin = {name for name, text in python_stdlib.builtin_docs()}
    assert {d.group for d in found if d.source == "stdlib/docstrings"} - {"alpha"} <= builtin
    assert summary["rejected"]["empty"] == 1  # beta/__init__.py
    assert read_json(corpus / "manifest.json")["python"] is not None


def test_python_stdlib_is_parsed_again_only_when_it_changed(
    tmp_path: Path, small_library: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses = []
    split = python_stdlib.split_docstrings
    monkeypatch.setattr(python_stdlib, "split_docstrings", lambda source: parses.append(source) or split(source))
    sources = {"stdlib": {"kind": "python_stdlib"}}
    first, _ = ingest(tmp_path, sources=sources)
    assert len(parses) == 4, "once per module for both files"
    second, summary = ingest(tmp_path, first, sources=sources)
    assert len(parses) == 4 and summary["reused_shards"] == 3
    (small_library / "alpha.py").write_text("x = 3\n")
    _, summary = ingest(tmp_path, second, sources=sources)
    assert len(parses) == 8 and summary["reused_shards"] == 1  # the topics


def test_the_library_of_this_python_keeps_the_training_out_of_the_report(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled model was trained on modules and topics whose name is in the pool: groups must be those names."""
    library = list(python_stdlib.code_and_prose())
    monkeypatch.setattr(python_stdlib, "code_and_prose", lambda: iter(library))  # seconds
    corpus, _ = ingest(tmp_path, sources={"stdlib": {"kind": "python_stdlib"}}, max_rejected=0.05)
    trained = {text for name, text in python_stdlib.topics() if split_of(name) == "pool"}
    for name, prose, code in library:
        if split_of(name) == "pool":
            trained |= {prose, code}
    found = [d for shard in shards(corpus) for d in documents(corpus, shard)]
    assert {d.domain for d in found} == {"prose", "code"} and len(found) > 500
    held_out = [d for d in found if split_of(d.group) == "report"]
    assert len(held_out) > 40 and not [d.source for d in held_out if d.text in trained]


@pytest.mark.parametrize("streaming", [True, False])
def test_huggingface_opens_a_local_dataset(
    tmp_path: Path, ingest: Ingest, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "set"
    data.mkdir()
    rows = [{"body": "one", "n": 1}, {"body": "  ", "n": 2}, {"body": "two", "n": 3}, {"body": "three", "n": 4}]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "huggingface", "name": "set", "revision": "local", "column": "body", "limit": 3}
    sources = {"hub": {**source, "streaming": streaming}}
    first, summary = ingest(tmp_path, sources=sources)
    found = [d for shard in shards(first) for d in documents(first, shard)]
    assert [(d.source, d.row, d.domain, d.text) for d in found] == [
        ("hub/train", 0, "hub", "one"),
        ("hub/train", 2, "hub", "two"),
    ]
    assert summary["rejected"] == {"empty": 1}
    _, summary = ingest(tmp_path, first, sources=sources)
    assert summary["reused_shards"] == 1
    (data / "train.jsonl").write_text('{"body": "new", "n": 1}\n')
    _, summary = ingest(tmp_path, first, sources=sources)
    assert summary["reused_shards"] == 0 and summary["documents"] == 1


def test_huggingface_wants_a_commit(tmp_path: Path, ingest: Ingest) -> None:
    sources = {"c4": {"kind": "huggingface", "name": "allenai/c4", "revision": "main"}}
    with pytest.raises(ValueError, match=r"corpus\.sources\.c4\.revision: expected the 40 hex digits.*'main'"):
        ingest(tmp_path, sources=sources)


@pytest.fixture
def local_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of JSON lines that `datasets` opens, with its cache in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(3)))
    return tmp_path / "set"


def hub(**changes: Any) -> dict[str, Any]:
    return {"hub": {"kind": "huggingface", "name": "set", "revision": "local", **changes}}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("wrong", [{"split": "tests"}, {"config": "german"}])
def test_what_datasets_cannot_open_names_the_source_and_its_key(
    tmp_path: Path, ingest: Ingest, local_set: Path, streaming: bool, wrong: dict[str, str]
) -> None:
    with pytest.raises(
        ValueError, match=r"^params\.yaml corpus\.sources\.hub: `datasets` cannot open 'set' \("
    ) as raised:
        ingest(tmp_path, sources=hub(streaming=streaming, **wrong))
    [value] = wrong.values()
    assert value in str(raised.value) and "Correct name, config and split" in str(raised.value)


@pytest.mark.parametrize("several", [True, False])
def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path, ingest: Ingest, several: bool) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "n": [1, 2]})
    (datasets.DatasetDict({"train": rows}) if several else rows).save_to_disk(str(tmp_path / "set"))
    corpus, summary = ingest(tmp_path, sources=hub())
    assert [d.text for shard in shards(corpus) for d in documents(corpus, shard)] == ["one", "two"]
    assert summary["rejected"] == {}
    if several:
        with pytest.raises(ValueError, match=r"corpus\.sources\.hub: .*split test.*its splits: train"):
            ingest(tmp_path, sources=hub(split="test"))


def test_a_broken_file_of_a_local_dataset_holds_it_back(tmp_path: Path, ingest: Ingest, local_set: Path) -> None:
    (local_set / "train.jsonl").write_text('{"text": "good"}\n{"text": "bro')
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/good.txt").write_text("a good text")
    corpus, summary = ingest(tmp_path, sources=hub(), max_rejected=0.05)
    assert summary["documents_by_source"] == {"hub": 0, "inbox": 1}
    [held] = summary["quarantine"]
    assert held["file"] == "hub/train" and held["why"].startswith("unreadable: after row 0: ")
    assert str(tmp_path) not in held["why"] and shards(corpus)


def test_a_null_of_a_dataset_is_a_blank_row(tmp_path: Path, ingest: Ingest, local_set: Path) -> None:
    (local_set / "train.jsonl").write_text('{"text": "good"}\n{"text": null}\n')
    assert ingest(tmp_path, sources=hub(), max_rejected=0.0)[1]["rejected"] == {"empty": 1}


def test_a_hub_that_stops_answering_stops_the_run(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus without the source would be another one under the same parameters."""
    import datasets

    class Rows:
        column_names = ("text",)

        def select_columns(self, names: list[str]) -> Any:
            return self

        def __iter__(self) -> Any:
            yield {"text": "one"}
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Rows())
    with pytest.raises(
        ValueError, match=r"corpus\.sources\.hub: 'a/b' \(.*cannot be read after row 1: Conn.*Run again"
    ):
        ingest(tmp_path, sources=hub(name="a/b", revision="0" * 40))
