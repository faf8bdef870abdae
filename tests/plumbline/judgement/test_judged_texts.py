"""The texts of a judgement are read and tokenized as the graph reads and tokenizes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.judgement.texts import read_texts, tokenized
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import fingerprint_of, read_samples
from tests.helpers.checkpoint import checkpoint


def test_documents_are_read_by_folder_file_and_row(texts: Path) -> None:
    found = read_texts([texts])
    assert len(found.documents) == 18
    assert found.rejected == {"broken_json": 1, "duplicate": 1, "unsupported": 1}
    assert found.first_rejected.startswith("chats.jsonl row 6: broken_json")
    domains = {document.source: document.domain for document in found.documents}
    assert domains["code/00.txt"] == "code" and domains["chats.jsonl"] == "mine"
    single = read_texts([texts / "chats.jsonl", texts / "prose" / "01.txt"])
    assert [document.domain for document in single.documents] == ["chats"] * 6 + ["01"]


def test_parquet_is_read_and_a_broken_file_is_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "rows.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:60])
    found = read_texts([tmp_path])
    assert [document.text for document in found.documents] == ["one", "two"] and found.rejected == {"unreadable": 1}


def test_what_cannot_be_read_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--texts: .* does not exist"):
        read_texts([tmp_path / "none"])
    (tmp_path / "bad.jsonl").write_text("{x\n")
    with pytest.raises(ValueError, match=r"no document in .*1 rows rejected; the first: bad.jsonl row 0: broken_json"):
        read_texts([tmp_path])


def test_samples_are_those_of_the_graph(models: Path, texts: Path, tmp_path: Path) -> None:
    """The same documents through raw_corpus and tokenized_samples give the same sample ids and fingerprint."""
    corpus, samples = tmp_path / "corpus", tmp_path / "samples"
    for folder in (corpus, samples):
        folder.mkdir()
    sources = {"sources": {"mine": {"kind": "directory", "path": str(texts)}}, "max_rejected": 1.0}
    build_raw_corpus(CorpusParams.model_validate(sources), tmp_path, corpus)
    policy = TokenizeParams(max_length=40, min_tokens=2, workers=1)
    build_tokenized_samples(policy, checkpoint(models / "base"), corpus, samples)
    held_out, fingerprint, refused = tokenized(read_texts([texts]), checkpoint(models / "base"), 40, None, None)
    expected = read_samples(samples, columns=["sample_id", "domain"]).to_pylist()
    assert set(held_out.sample_ids) == {row["sample_id"] for row in expected}
    assert fingerprint == fingerprint_of(samples) and refused == {}
    assert set(held_out.domains) == {"prose", "code", "mine"}


def test_limits_take_documents_in_order_of_their_id(models: Path, texts: Path) -> None:
    base, read = checkpoint(models / "base"), read_texts([texts])
    everything, _, _ = tokenized(read, base, 16, None, None)
    few, _, _ = tokenized(read, base, 16, 30, 1)
    assert set(few.sample_ids) < set(everything.sample_ids)
    for domain in ("code", "prose"):
        ids = sorted({d for d, of in zip(everything.doc_ids, everything.domains, strict=True) if of == domain})
        taken = [d for d, of in zip(few.doc_ids, few.domains, strict=True) if of == domain]
        assert taken == ids[: len(taken)] and len(set(taken)) == len(taken)  # one window each
        windows = {n for n, d in zip(everything.sample_ids, everything.doc_ids, strict=True) if d == taken[0]}
        assert few.sample_ids[few.doc_ids.index(taken[0])] == min(windows)
        assert 30 <= few.choice[domain]["tokens"] < 30 + 16


def test_a_chat_without_a_template_is_an_error(models: Path, texts: Path, tmp_path: Path) -> None:
    from tests.helpers.tokenizer import make_tokenizer

    for name in ("bare", "strict"):
        shutil.copytree(models / "base", tmp_path / name, ignore=shutil.ignore_patterns("*.jinja"))
    make_tokenizer(template=None).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no chat template"):
        tokenized(read_texts([texts]), checkpoint(tmp_path / "bare"), 40, None, None)
    make_tokenizer(template="{{ raise_exception('no system') }}").save_pretrained(tmp_path / "strict")
    with pytest.raises(ValueError, match="refused 6 chats: .*no system"):
        tokenized(read_texts([texts / "chats.jsonl"]), checkpoint(tmp_path / "strict"), 40, None, None)
