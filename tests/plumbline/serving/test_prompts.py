"""Which texts are scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from plumbline.serving import prompts
from tests.helpers.tokenized_samples import sample, write_samples
from tests.helpers.tokenizer import write_byte_tokenizer


def test_held_out_samples_of_all_domains_in_turn_one_a_document_cut_to_length(tmp_path: Path) -> None:
    rows = [sample(number, 40, "report", "prose", f"p{number // 2}") for number in range(8)]
    rows += [sample(100 + number, 9, "report", "code", f"c{number}") for number in range(2)]
    rows += [sample(200, 1, "report", "code", "c3"), sample(300, 50, "pool"), sample(400, 50, "tuning")]
    write_samples(tmp_path / "data" / "tokenized_samples", rows)
    chosen = prompts.of_workspace(tmp_path, count=5, tokens=16)
    domains = ["code" if ids[1] > 90_000 else "prose" for ids in chosen]
    assert domains == ["code", "prose", "code", "prose", "prose"]
    assert [len(ids) for ids in chosen] == [9, 16, 9, 16, 16]
    assert len({(ids[1] // 1000 - 1) // 2 for ids in chosen if ids[1] < 90_000}) == 3, "each of another document"
    assert len(prompts.of_workspace(tmp_path, count=99, tokens=16)) == 6, "4 documents of prose, 2 of code"


def test_a_workspace_without_samples_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"plumbline run.*--texts FILE"):
        prompts.of_workspace(tmp_path)


def test_texts_of_files_in_order(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "", "two")[::2]))
    (tmp_path / "b.txt").write_text("three\nfour")
    files = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    chosen = prompts.of_files(files, tokenizer, tokens=6)
    assert chosen == [tokenizer(text)["input_ids"][:6] for text in ("one", "two", "three\nfour")]
    assert len(prompts.of_files(files, tokenizer, count=1)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": 3}\n', r"t\.jsonl row 2: wrong_type .*; correct or remove it"),
        ("{}\n", r"t\.jsonl row 1: wrong_type \(no field 'text'"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', r"t\.jsonl row 1: a chat; give rows with a `text`"),
        ("", r"t\.jsonl: no text of 2 tokens or more"),
    ],
)
def test_rows_without_a_text_are_named(tmp_path: Path, content: str, message: str) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        prompts.of_files([tmp_path / "t.jsonl"], AutoTokenizer.from_pretrained(tmp_path))
