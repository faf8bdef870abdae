from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from plumbline.artifact import read_json
from plumbline.raw_corpus.document import document_id
from plumbline.tokenized_samples import batches, reader
from plumbline.tokenized_samples import tokenize as tokenize_module
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import fingerprint_of, iter_samples, read_samples
from plumbline.tokenized_samples.splits import split_of
from plumbline.tokenized_samples.summary import summary as summary_of
from tests.helpers.checkpoint import checkpoint
from tests.helpers.log import numbers_logged

SHORT = TokenizeParams(max_length=12, min_tokens=1)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture
def build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """build(params, folder, corpus, previous) -> (artifact, summary with the number of reused shards)."""
    caplog.set_level(logging.INFO, "plumbline")
    count = 0

    def run(params: TokenizeParams, folder: Path, corpus: Path, previous: Path | None = None) -> tuple[Path, Any]:
        nonlocal count
        count += 1
        out = tmp_path / f"samples{count}"
        out.mkdir()
        build_tokenized_samples(params, checkpoint(folder), corpus, out, previous)
        return out, {**summary_of(out), "reused_shards": numbers_logged(caplog, "took over")[0]}

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_counts(samples: Path) -> dict[str, Any]:
    """Recount the accounting from the rows."""
    counts: dict[str, Any] = read_json(samples / "accounting.json")
    table = read_samples(samples).to_pylist()
    assert counts["samples_out"] == len(table) == len({row["sample_id"] for row in table})
    assert counts["tokens_out"] == sum(row["n_tokens"] - row["n_special"] for row in table)
    assert counts["special_tokens"] == sum(row["n_special"] for row in table)
    assert counts["tokens_in"] == counts["tokens_out"] + sum(lost["tokens"] for lost in counts["lost"].values())
    for name, groups in (("split", counts["by_split"]), ("domain", counts["by_domain"])):
        for value, group in groups.items():
            rows = [row for row in table if row[name] == value]
            assert group == {
                "samples": len(rows),
                "tokens": sum(row["n_tokens"] for row in rows),
                "documents": len({row["doc_id"] for row in rows}),
            }
    return counts


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, False), (True, True)])
def test_samples_are_what_production_sees(
    build: Any, tokenizer_folder: Any, corpus_of: Any, bos: bool, eos: bool
) -> None:
    folder = tokenizer_folder(bos=bos, eos=eos)
    texts = ["short", "ünï </s> x", "exactly11ch"[: 12 - bos - eos], CHAT]
    samples, _ = build(TokenizeParams(max_length=12, min_tokens=1), folder, corpus_of({"d": texts}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(t)["input_ids"] for t in texts[:3]]
    expected.append(tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False))
    table = read_samples(samples).to_pylist()
    assert [row["input_ids"] for row in table] == expected
    assert [row["n_special"] for row in table] == [bos + eos] * 3 + [0]
    for row, text in zip(table, texts, strict=True):
        assert row["sample_id"] == hashlib.sha256(np.array(row["input_ids"], "<i4").tobytes()).hexdigest()
        assert row["doc_id"] == (document_id(text, None) if isinstance(text, str) else document_id(None, tuple(CHAT)))
        assert row["split"] == split_of(row["doc_id"]) and row["domain"] == "d"
        assert row["n_tokens"] == len(row["input_ids"]) and row["window"] == row["start"] == 0
    check_counts(samples)


def test_long_documents_are_windowed_and_add_up(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    folder = tokenizer_folder()
    samples, summary = build(TokenizeParams(max_length=12, min_tokens=6), folder, corpus_of({"d": [text, "x"]}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = read_samples(samples).to_pylist()
    assert [tokenizer.decode(row["input_ids"]) for row in table] == ["<s>abcdefghijk", "<s>lmnopqrstuv"]
    assert [(row["window"], row["start"]) for row in table] == [(0, 0), (1, 11)]
    assert summary["lost"] == {"too_short": {"documents": 2, "samples": 2, "tokens": 5}}
    assert (summary["tokens_in"], summary["tokens_out"], summary["special_tokens"]) == (27, 22, 2)
    check_counts(samples)


def test_a_template_that_begins_with_the_prefix_repeats_it_in_every_window(
    build: Any, tokenizer_folder: Any, corpus_of: Any
) -> None:
    folder = tokenizer_folder(template="{{ bos_token }}{{ messages[0]['content'] }}")
    corpus = corpus_of({"d": [[{"role": "user", "content": "abcdefghijklmno"}]]})
    samples, _ = build(SHORT, folder, corpus)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [tokenizer.decode(row["input_ids"]) for row in read_samples(samples).to_pylist()]
    assert found == ["<s>abcdefghijk", "<s>lmno"]


def test_a_template_with_todays_date_gives_the_same_tomorrow(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    template = "\n {%- if strftime_now is defined %}  {{ strftime_now('%d %b %Y') }}{% endif %}\n"
    folder = tokenizer_folder(template=template)
    samples, _ = build(TokenizeParams(max_length=1024, min_tokens=1), folder, corpus_of({"d": [CHAT]}))
    ids = read_samples(samples)["input_ids"].to_pylist()[0]
    assert AutoTokenizer.from_pretrained(folder).decode(ids) == "  26 Jul 2024"


def test_a_chat_without_a_template_is_an_error(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    with pytest.raises(ValueError, match=r"docs/d/rows.jsonl row 1 is a chat.*no chat template.*{chat_template: FILE}"):
        build(SHORT, tokenizer_folder(template=None), corpus_of({"d": ["text", CHAT]}))


def test_a_chat_that_the_template_refuses_is_set_aside(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles!') }}{% endif %}{{ messages[0]['content'] }}"
    )
    folder = tokenizer_folder(template=template)
    corpus = corpus_of({"d": ["text", CHAT[::-1], CHAT]})
    with pytest.raises(ValueError, match=r"refused 1 of 3 documents.*allows 5\.0 %.*docs/d/rows.jsonl row 1.*roles!"):
        build(SHORT, folder, corpus)
    params = SHORT.model_copy(update={"max_refused": 0.34})
    samples, summary = build(params, folder, corpus)
    assert summary["lost"] == {"chat_template_error": {"documents": 1, "samples": 0, "tokens": 0}}
    assert summary["documents_in"] == 3 and summary["samples_out"] == 2
    shard = read_json(samples / "accounting.json")["shards"][0]["shard"]
    refused = pq.read_table(tokenize_module.refused_path(samples, shard)).to_pylist()
    assert [(r["source"], r["row"], r["reason"]) for r in refused] == [("docs/d/rows.jsonl", 1, "chat_template_error")]
    assert "roles!" in refused[0]["detail"]
    again, summary = build(params, folder, corpus, samples)
    assert tree(again) == tree(samples) and summary["reused_shards"] == 1


def test_duplicate_samples_are_counted_and_left_out(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    params = TokenizeParams(max_length=12, min_tokens=1)
    header = "h" * 11
    corpus = corpus_of({"a": [header + "one", header + "two"], "b": [header + header + "3", "one"]})
    samples, summary = build(params, tokenizer_folder(), corpus)
    found = [row["source"][5] + str(row["start"]) for row in read_samples(samples).to_pylist()]
    assert found == ["a0", "a11", "a11", "b22"]  # "one" of b is the window of a
    assert summary["lost"] == {"duplicate": {"documents": 3, "samples": 4, "tokens": 36}}
    table = pq.read_table(samples / "duplicates.parquet").to_pylist()
    assert [row["row"] for row in table] == [2, 0, 1, 3]
    check_counts(samples)


def many(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(map(chr, rng.integers(97, 100, rng.integers(1, 40)))) for _ in range(n)]


def test_any_number_of_workers_gives_the_same_bytes(
    build: Any, tokenizer_folder: Any, corpus_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_BYTES", 500)
    monkeypatch.setattr(tokenize_module, "ROW_GROUP_TOKENS", 900)
    corpus = corpus_of({"a": many(200), "b": [*many(50, 1), CHAT], "c": many(200)[:20]})
    folder = tokenizer_folder()
    one, _ = build(SHORT.model_copy(update={"workers": 1}), folder, corpus)
    monkeypatch.setattr(tokenize_module, "SMALL_BYTES", 0)
    two, _ = build(SHORT.model_copy(update={"workers": 2}), folder, corpus)
    assert tree(one) == tree(two)
    check_counts(one)
    shard = read_json(one / "accounting.json")["shards"][0]["shard"]
    assert pq.read_metadata(tokenize_module.shard_path(one, shard)).num_row_groups > 3, (
        "shards are written as they come"
    )


def test_an_error_in_a_worker_reaches_the_caller(
    build: Any, tokenizer_folder: Any, corpus_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_module, "SMALL_BYTES", 0)
    params = SHORT.model_copy(update={"workers": 2})
    with pytest.raises(ValueError, match="no chat template"):
        build(params, tokenizer_folder(template=None), corpus_of({"d": [CHAT]}))


def test_only_new_shards_are_tokenized(
    build: Any, tokenizer_folder: Any, corpus_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    work = tokenize_module.tokenize_batch
    monkeypatch.setattr(
        tokenize_module, "tokenize_batch", lambda e, p, documents: done.append(len(documents)) or work(e, p, documents)
    )
    files = {"b": many(30), "c": many(10, 1)}
    folder = tokenizer_folder()
    first, _ = build(SHORT, folder, corpus_of(files))
    grown = corpus_of({"a": many(5, 2), **files})
    done.clear()
    second, summary = build(SHORT, folder, grown, first)
    assert done == [5] and summary["reused_shards"] == 2
    assert tree(second) == tree(build(SHORT, folder, grown)[0]), "reuse must not be visible in the artifact"
    before = {row["sample_id"]: row["split"] for row in read_samples(first).to_pylist()}
    after = {row["sample_id"]: row["split"] for row in read_samples(second).to_pylist()}
    assert before.items() <= after.items(), "new data moves no sample to another split"
    shadowed = corpus_of({"a": files["b"][:3], **files})  # documents of b are now duplicates of a
    third, summary = build(SHORT, folder, shadowed, second)
    assert summary["reused_shards"] == 1
    assert tree(third) == tree(build(SHORT, folder, shadowed)[0])
    for other in (SHORT.model_copy(update={"min_tokens": 5}), SHORT.model_copy(update={"max_length": 11})):
        assert build(other, folder, grown, second)[1]["reused_shards"] == 0
    assert build(SHORT, tokenizer_folder(eos=True), grown, second)[1]["reused_shards"] == 0


def test_a_shard_of_nothing_but_duplicates(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    corpus = corpus_of({"a": ["one", "two"], "b": ["two", "one"]})
    samples, summary = build(SHORT, tokenizer_folder(), corpus)
    assert summary["samples_out"] == 2 and summary["shards"] == 2
    assert build(SHORT, tokenizer_folder(), corpus, samples)[1]["reused_shards"] == 2


def test_reader_selects_splits_columns_and_shards(
    build: Any, tokenizer_folder: Any, corpus_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, summary = build(SHORT, tokenizer_folder(), corpus_of({"a": many(60), "b": many(60, 1)}))
    everything = read_samples(samples).to_pylist()
    assert fingerprint_of(samples) == summary["fingerprint"]
    for splits in (["report"], ["pool", "tuning"], []):
        found = read_samples(samples, splits, ["n_tokens", "sample_id"])
        assert found.column_names == ["n_tokens", "sample_id"]
        assert found["sample_id"].to_pylist() == [r["sample_id"] for r in everything if r["split"] in splits]
    monkeypatch.setattr(reader, "BATCH_ROWS", 7)  # duplicates are found across batches
    streamed = list(iter_samples(samples))
    assert len(streamed) > 10 and [row for batch in streamed for row in batch.to_pylist()] == everything
    by_shard = [r for shard in reader.shards(samples) for r in read_samples(samples, only_shards=[shard]).to_pylist()]
    assert by_shard == everything
    with pytest.raises(ValueError, match="'rest'"):
        read_samples(samples, ["rest"])


def test_errors_say_what_to_do(build: Any, tokenizer_folder: Any, corpus_of: Any) -> None:
    corpus, folder = corpus_of({"d": ["abc"]}), tokenizer_folder()
    with pytest.raises(ValueError, match=r"none of 1 documents gave a sample \(too_short: 1 documents\).*min_tokens"):
        build(TokenizeParams(max_length=1024, min_tokens=10), folder, corpus)
    with pytest.raises(ValueError, match="leave a pool"):
        build(TokenizeParams.model_validate({"splits": {"tuning": 0.5, "report": 0.5}}), folder, corpus)


def test_real_texts_with_a_real_tokenizer(build: Any, corpus_of: Any, shared_data: Path) -> None:
    stories = (shared_data / "corpora/tinystories/tinystories_train_head.txt").read_text().split("<|endoftext|>")
    code = (shared_data / "corpora/exllamav2-cal/code.utf8").read_text()
    texts = {
        "stories": [s.strip() for s in stories if s.strip()],
        "code": [code[i : i + 3000] for i in range(0, 60_000, 3000)],
        "many-scripts": [(shared_data / "corpora/exllamav2-cal/multilingual.utf8").read_text()],
    }
    folder = shared_data / "models/stories260K"
    params = TokenizeParams(max_length=256, min_tokens=8)
    samples, summary = build(params, folder, corpus_of(texts))
    counts = check_counts(samples)
    assert set(summary["by_domain"]) == set(texts) and counts["by_split"]["report"]["samples"] > 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_document: dict[str, list[int]] = {}
    for row in read_samples(samples).to_pylist():
        assert row["input_ids"][0] == tokenizer.bos_token_id and row["n_tokens"] <= 256
        by_document.setdefault(row["doc_id"], []).extend(row["input_ids"][1:])
    for text in [*texts["stories"], *texts["code"]]:
        whole = tokenizer(text)["input_ids"][1:]
        found = by_document[document_id(text, None)]
        # Only a last window that was too short may be missing.
        assert found == whole[: len(found)] and len(whole) - len(found) < 7


@pytest.mark.parametrize("name", ["production", "out_of_domain"])
def test_a_source_apart_is_a_split_of_its_own_and_moves_nothing_else(
    build: Any, tokenizer_folder: Any, corpus_of: Any, name: str
) -> None:
    files, folder = {"a": many(60), "b": many(30, 1)}, tokenizer_folder()
    before, summary = build(SHORT, folder, corpus_of(files))
    assert summary["by_split"][name] == {"samples": 0, "tokens": 0, "documents": 0}
    traffic = [*many(20, 2), files["b"][0], files["a"][0] + "x"]
    corpus = corpus_of(files, **{name: {"chat": traffic}})
    after, summary = build(SHORT, folder, corpus, before)
    assert summary["reused_shards"] == 1, "the documents of a are what they were; one of b is its own now"
    assert tree(after) == tree(build(SHORT, folder, corpus)[0]), "reuse must not be visible in the artifact"
    check_counts(after)
    table, old = read_samples(after).to_pylist(), read_samples(before).to_pylist()
    assert {r["source"] for r in table if r["split"] == name} == {f"{name}/chat/rows.jsonl"}
    assert {r["split"] for r in table if r["source"].startswith(f"{name}/")} == {name}
    shared = [r["split"] for r in table if r["doc_id"] == document_id(files["b"][0], None)]
    assert set(shared) == {name}
    split_before = {(r["sample_id"], r["doc_id"]): r["split"] for r in old}
    kept = {(r["sample_id"], r["doc_id"]): r["split"] for r in table if r["split"] != name}
    assert kept.items() <= split_before.items(), "no other document changes its split"
    ours = {r["sample_id"] for r in table if r["split"] == name}
    assert {sample for sample, _ in split_before} <= ours | {sample for sample, _ in kept}, "nothing is lost"
    assert not ours & {sample for sample, _ in kept}
    gone, summary = build(SHORT, folder, corpus_of(files), after)
    assert tree(gone) == tree(before) and summary["reused_shards"] == 1
