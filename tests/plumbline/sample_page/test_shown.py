"""What is shown of a set, against the files themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from plumbline.artifact import read_json, write_json
from plumbline.base_model.load import load_tokenizer
from plumbline.sample_page.build import build_sample_page
from plumbline.sample_page.comparison import compare
from plumbline.sample_page.page import render, visible
from plumbline.sample_page.params import PageParams
from plumbline.sample_page.rejected import read_rejections, render_rejections
from plumbline.sample_page.shown import ShownSet, in_words, read_shown_set
from plumbline.sample_page.summary import summary
from tests.helpers.checkpoint import checkpoint
from tests.helpers.shown_set import CHOICES, HOSTILE

FIRST, SECOND = CHOICES


def read(root: Path, choice: str = FIRST, texts: bool = True) -> ShownSet:
    data = root / "data"
    tokenizer = load_tokenizer(root / "base") if texts else None
    return read_shown_set(
        data / "calibration_set" / choice, data / "raw_corpus", tokenizer, data / "activation_stats" / choice
    )


def build(root: Path, out: Path, texts: bool = True) -> str:
    out.mkdir(parents=True)
    data = root / "data"
    folders = [data / "calibration_set" / FIRST, data / "activation_stats" / FIRST]
    build_sample_page(PageParams(texts=texts), checkpoint("base", root), data / "raw_corpus", *folders, out)
    return (out / "samples.html").read_text(encoding="utf-8")


def test_every_sample_has_its_document_row_and_whole_text(workspace: Path) -> None:
    shown = read(workspace)
    rows = pq.read_table(workspace / "data/calibration_set" / FIRST / "samples.parquet").to_pylist()
    assert [s.sample_id for s in shown.samples] == [row["sample_id"] for row in rows]
    tokenizer = load_tokenizer(workspace / "base")
    chats = 0
    for sample, row in zip(shown.samples, rows, strict=True):
        assert sample.text == tokenizer.decode(row["input_ids"]) and sample.tokens == len(row["input_ids"])
        [document] = sample.documents
        path = workspace / "texts" / document.source.removeprefix("own/")
        line = path.read_text(encoding="utf-8").split("\n")[document.row] if path.suffix == ".jsonl" else None
        if line is None:
            assert document.row == 0 and sample.text.removeprefix("<s>") in path.read_text(encoding="utf-8")
        else:
            contents = [message["content"] for message in json.loads(line)["messages"]]
            assert all(any(turn.text in c for c in contents) for turn in sample.turns or () if turn.role)
            chats += sample.chat
    assert chats >= 3


def test_extremes_are_those_of_the_statistics(workspace: Path) -> None:
    shown = read(workspace)
    folder = workspace / "data/activation_stats" / FIRST
    header = read_json(folder / "stats.json") if (folder / "stats.json").is_file() else None
    [tensors] = folder.glob("*.safetensors")
    header = header or next(read_json(path) for path in folder.glob("*.json"))
    expected: dict[str, set[str]] = {}
    with safe_open(tensors, framework="np") as file:
        for site in header["sites"]:
            largest = np.abs(file.get_tensor(f"{site}:top_values")).max(axis=1)
            expected.setdefault(header["sample_ids"][int(largest.argmax())], set()).add(site)
    assert {s.sample_id: set(s.sites) for s in shown.samples if s.sites} == expected
    assert shown.layers == len(header["sites"]) == sum(len(s.sites) for s in shown.samples) > 4
    assert shown.notes == ()


def test_what_cannot_be_shown_is_said(workspace: Path, tmp_path: Path) -> None:
    no_statistics = read(workspace, SECOND)
    assert no_statistics.layers == 0 and "no activation statistics yet" in no_statistics.notes[0]
    data = workspace / "data"
    other = data / "activation_stats" / FIRST
    wrong = read_shown_set(data / "calibration_set" / SECOND, None, None, other)
    notes = " ".join(wrong.notes)
    documents = {document.doc_id for sample in wrong.samples for document in sample.documents}
    assert f"Rows of {len(documents)} documents are not shown: there is no corpus here" in notes
    assert "run `plumbline run` to collect them again" in notes and "Texts are left out" in notes
    assert all(d.row is None and d.source for s in wrong.samples for d in s.documents)
    # a document whose stored text was altered is not the one that the set names
    corpus = tmp_path / "corpus"
    shutil.copytree(data / "raw_corpus", corpus)
    chosen = next(s for s in read(workspace).samples if not s.chat).documents[0].source
    shard = next(path for path in corpus.glob("shards/*") if pq.read_table(path)["source"][0].as_py() == chosen)
    table = pq.read_table(shard)
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", [["other"]]), shard)
    altered = read_shown_set(data / "calibration_set" / FIRST, corpus, None, other)
    assert "Rows of 1 documents are not shown: the corpus no longer holds them" in altered.notes[0]


def test_a_set_that_was_altered_is_refused(workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(workspace / "data/calibration_set" / FIRST, folder)
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "digest": "0" * 64})
    with pytest.raises(ValueError, match="was altered"):
        read_shown_set(folder, None, None, None)


def test_the_page_is_the_same_bytes_wherever_it_is_made(workspace: Path, tmp_path: Path) -> None:
    html = build(workspace, tmp_path / "one")
    elsewhere = tmp_path / "moved"
    shutil.copytree(workspace, elsewhere)
    assert build(elsewhere, tmp_path / "two") == html
    assert (tmp_path / "one/page.json").read_bytes() == (tmp_path / "two/page.json").read_bytes()
    about = summary(tmp_path / "one")
    assert about["samples"] == 12 and about["texts"] and about["rows"] == 12
    assert about["sentence"].startswith("12 samples with their texts; ")


def test_texts_are_escaped_and_nothing_is_loaded(workspace: Path, tmp_path: Path) -> None:
    html = build(workspace, tmp_path / "page")
    for text in HOSTILE:
        assert text.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in html
    assert "<script>document.title" not in html and "<img" not in html
    assert not any(part in html for part in ("http://", "https://", ' src="', "@import", "url("))


def test_no_word_of_a_text_is_on_a_page_without_texts(workspace: Path, tmp_path: Path) -> None:
    html = build(workspace, tmp_path / "page", texts=False)
    assert not any(word in html for word in ("plain words", "Question", "document.title", "Yes 1"))
    assert "own/talk/chats.jsonl" in html and "Texts are left out" in html
    about = summary(tmp_path / "page")
    assert not about["texts"] and about["sentence"].startswith("12 samples without their texts; ")


def test_control_characters_and_turned_text_are_made_visible() -> None:
    assert visible("a\x00b\x1b[0m\u202eevil\u2066\n\tz\x7f") == "a\u2400b\u241b[0m\ufffdevil\ufffd\n\tz\u2421"


def test_two_sets_beside_each_other(workspace: Path) -> None:
    one, other = read(workspace, FIRST, texts=False), read(workspace, SECOND, texts=False)
    comparison = compare(one, other)
    ids = [{s.sample_id for s in each.samples} for each in (one, other)]
    assert comparison.shared == ids[0] & ids[1] and 0 < len(comparison.shared) < 9
    lines = {line.label: (line.one, line.other) for line in comparison.lines}
    assert lines["samples"] == ("12", "9") and lines["strategy"] == ("random", "first_n")
    assert lines["talk"][1] == "0 % of tokens"
    html = render(one, other)
    assert html.count('data-in="both"') == 2 * len(comparison.shared)
    assert html.count('data-in="one"') == 21 - 2 * len(comparison.shared)
    assert comparison.sentence in html


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ({"drawn": 3}, "drawn 3"),
        ({"nearest_to": "cluster 2", "distance": 0.123456}, "nearest to cluster 2, distance 0.1235"),
        ({"domain": "code", "within": {"drawn": 1}}, "domain code, within drawn 1"),
        ({"tokens": ["a", "b"]}, "tokens a b"),
        ({}, ""),
    ],
)
def test_reasons_are_words(reason: dict, words: str) -> None:
    assert in_words(reason) == words


def test_rejections_are_all_there_and_counted(workspace: Path) -> None:
    data = workspace / "data"
    rejections = read_rejections(data / "raw_corpus", data / "tokenized_samples", texts=True)
    assert rejections.counts == {"broken_json": 1, "wrong_type": 1} and rejections.total == 2
    assert [(row.file, row.row, row.reason) for row in rejections.rows] == [
        ("own/talk/chats.jsonl", 0, "broken_json"),
        ("own/talk/chats.jsonl", 1, "wrong_type"),
    ]
    assert rejections.lost == read_json(data / "tokenized_samples/accounting.json")["lost"] != {}
    html = render_rejections(rejections)
    assert "2 rows were rejected, 27 documents were accepted." in html and "expected an object" in html
    without = render_rejections(read_rejections(data / "raw_corpus", None, texts=False))
    assert "expected an object" not in without and "Nothing was tokenized yet" in without
    with pytest.raises(FileNotFoundError, match="plumbline run --only raw_corpus"):
        read_rejections(data, None, texts=True)
