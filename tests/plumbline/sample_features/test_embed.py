from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.execution.params import ExecutionParams
from plumbline.sample_features import blocks, engine
from plumbline.sample_features import embed as module
from plumbline.sample_features.build import build_sample_features
from plumbline.sample_features.params import FeatureParams
from plumbline.sample_features.reader import embeddings_of, read_features, read_manifest
from plumbline.sample_features.summary import summary as summary_of
from plumbline.tokenized_samples.reader import read_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.log import numbers_logged
from tests.helpers.texts import texts
from tests.helpers.tokenizer import write_byte_tokenizer

Tokenized = Callable[[dict[str, list[str]]], Path]


def shown(out: Path, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The summary, and how many embeddings were computed and how many reused."""
    computed, total = numbers_logged(caplog, "computed")
    return {**summary_of(out), "computed": computed, "reused": total - computed}


@pytest.fixture
def build(
    tmp_path: Path, embedder: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    caplog.set_level(logging.INFO, "plumbline")
    count = 0

    def make(
        samples: Path, previous: Path | None = None, execution: ExecutionParams | None = None, **params: Any
    ) -> tuple[Path, dict[str, Any]]:
        nonlocal count
        count += 1
        out = tmp_path / f"features{count}"
        out.mkdir()
        settings = FeatureParams.model_validate(
            {"embedder": embedder.name, "max_tokens": 40, "batch_size": 8, "signatures": None, **params}
        )
        base = checkpoint(tokenizer_folder)
        build_sample_features(settings, base, samples, out, previous, embedder.parent, execution)
        return out, shown(out, caplog)

    return make


Build = Callable[..., tuple[Path, dict[str, Any]]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def by_hand(embedder: Path, text: str, max_tokens: int) -> np.ndarray:
    """The definition: mean of the last hidden states over the tokens, one text at a time, made unit length."""
    import torch
    from transformers import AutoTokenizer, BertModel

    ids = AutoTokenizer.from_pretrained(embedder)(text, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.no_grad():
        hidden = BertModel.from_pretrained(embedder).eval()(ids["input_ids"]).last_hidden_state[0]
    mean = hidden.mean(0).double().numpy()
    return mean / np.linalg.norm(mean)


def test_embeddings_are_those_of_the_decoded_text_of_pool_and_tuning_alone(
    tokenized: Tokenized, build: Build, embedder: Path, tokenizer_folder: Path
) -> None:
    from transformers import AutoTokenizer

    samples = tokenized({"a": texts(0, 30), "b": texts(100, 20)})
    out, summary = build(samples)
    expected = read_samples(samples, ["pool", "tuning"])
    assert read_samples(samples, ["report"]).num_rows > 0
    features = read_features(out)
    assert features.sample_ids.to_pylist() == expected["sample_id"].to_pylist()
    assert features.lengths.tolist() == expected["n_tokens"].to_pylist()
    assert set(features.domains.to_pylist()) == {"letters"}
    assert summary["samples"] == summary["computed"] == expected.num_rows == read_manifest(out)["samples"]
    found = features.embeddings.take().astype(np.float64)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-3
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    for row in range(0, expected.num_rows, 7):
        text = tokenizer.decode(expected["input_ids"][row].as_py(), skip_special_tokens=True)
        assert np.abs(found[row] - by_hand(embedder, text, 40)).max() < 3e-4  # float16 at 0.5


def test_unchanged_samples_are_taken_over_without_loading_an_embedder(
    tokenized: Tokenized, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tokenized({"a": texts(0, 12), "b": texts(100, 12)})
    out, _ = build(samples)
    monkeypatch.setattr(engine, "load", lambda *_: pytest.fail("loaded the embedder"))
    again, summary = build(samples, previous=out)
    assert (summary["computed"], summary["reused"]) == (0, summary["samples"])
    assert content(again) == content(out)


def test_a_grown_file_costs_its_new_samples_only_and_gives_the_bytes_of_a_fresh_run(
    tokenized: Tokenized, build: Build
) -> None:
    """The grown file is another shard (named by content): its old samples are found by their id, not their place."""
    before, after = {"a": texts(0, 15), "b": texts(100, 9)}, {"a": texts(300, 6) + texts(0, 15), "b": texts(100, 9)}
    old, new = tokenized(before), tokenized(after)
    out, _ = build(old)
    known = set(read_samples(old, ["pool", "tuning"])["sample_id"].to_pylist())
    wanted = set(read_samples(new, ["pool", "tuning"])["sample_id"].to_pylist())
    grown, summary = build(new, previous=out)
    assert summary["computed"] == len(wanted - known) > 0
    assert summary["reused"] == len(wanted & known)
    fresh, _ = build(new)
    assert content(grown) == content(fresh)


def test_the_bytes_do_not_depend_on_batches_and_buffers(
    tokenized: Tokenized, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tokenized({"a": texts(0, 30), "b": texts(100, 20)})
    out, _ = build(samples)
    monkeypatch.setattr(module, "BUFFER", 5)
    other, _ = build(samples, batch_size=16)
    assert content(other) == content(out)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_blocks_that_others_embed_give_the_same_bytes(
    tokenized: Tokenized, build: Build, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """0 workers: this process does their jobs."""
    samples = tokenized({"a": texts(0, 30), "b": texts(100, 20)})
    half, _ = build(tokenized({"a": texts(0, 30)}))
    out, summary = build(samples, previous=half)
    assert 5 < summary["computed"] < summary["samples"]
    monkeypatch.setattr(module, "BUFFER", 5)
    jobs: list[Any] = []
    if not workers:

        def here(work: Any, todo: list[Any], *_: Any) -> None:
            jobs.extend(todo)
            for job in todo:
                work(job)

        monkeypatch.setattr(blocks, "share_out", here)
    other, again = build(samples, previous=half, execution=ExecutionParams(workers=2))
    assert content(other) == content(out) and again == summary
    assert workers or len(jobs) == -(-summary["computed"] // 5)


@pytest.mark.parametrize("change", [{"max_tokens": 12}, {"matmul_precision": "medium"}])
def test_other_settings_compute_everything_anew(tokenized: Tokenized, build: Build, change: dict[str, Any]) -> None:
    samples = tokenized({"a": texts(0, 12)})
    out, _ = build(samples)
    assert build(samples, previous=out, **change)[1]["reused"] == 0


def test_another_embedder_computes_everything_anew(
    tokenized: Tokenized, build: Build, embedder: Path, tmp_path: Path, tokenizer_folder: Path, caplog: Any
) -> None:
    """Same name, other weights: the digest decides."""
    samples = tokenized({"a": texts(0, 12)})
    out, summary = build(samples)
    other = tmp_path / "other" / embedder.name
    shutil.copytree(embedder, other)
    with (other / "1_Pooling" / "config.json").open("a") as file:
        file.write("\n")
    again = tmp_path / "again"
    again.mkdir()
    params = FeatureParams(embedder=embedder.name, max_tokens=40, signatures=None)
    build_sample_features(params, checkpoint(tokenizer_folder), samples, again, out, other.parent)
    changed = shown(again, caplog)
    assert changed["reused"] == 0
    assert changed["embedder_digest"] != summary["embedder_digest"]


def test_text_beyond_max_tokens_is_not_read(tokenized: Tokenized, build: Build) -> None:
    start = "abcdefghij klmnopqrst"  # 20 word pieces of the tiny embedder, between [CLS] and [SEP]
    samples = tokenized({"a": [f"{start} {end}" for end in ("one", "two", "three", "four", "five", "six", "seven")]})
    short = read_features(build(samples, max_tokens=22)[0]).embeddings.take()
    whole = read_features(build(samples, max_tokens=40)[0]).embeddings.take()
    assert len(short) > 2
    assert (short == short[0]).all()
    assert not (whole == whole[0]).all()


def test_the_precision_of_matrix_products_reaches_the_embedder(
    tokenized: Tokenized, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = engine.load

    def watch(folder: Path, max_tokens: int, precision: str) -> Any:
        seen.append(precision)
        return original(folder, max_tokens, precision)

    monkeypatch.setattr(engine, "load", watch)
    build(tokenized({"a": texts(0, 5)}), matmul_precision="medium")
    assert seen == ["medium"]


def test_another_tokenizer_than_the_samples_were_made_with_is_refused(
    tokenized: Tokenized, tmp_path: Path, embedder: Path
) -> None:
    samples = tokenized({"a": texts(0, 5)})
    other, out = write_byte_tokenizer(tmp_path / "other_model", "<b>"), tmp_path / "out"
    out.mkdir()
    params = FeatureParams(embedder=embedder.name)
    with pytest.raises(ValueError, match="tokenizer of other_model gives .* run tokenized_samples again"):
        build_sample_features(params, checkpoint(other), samples, out, None, embedder.parent)


def test_artifact_names_no_path_of_this_machine(tokenized: Tokenized, build: Build, embedder: Path) -> None:
    out, _ = build(tokenized({"a": texts(0, 5)}), embedder=str(embedder))
    assert read_manifest(out)["embedder"] == embedder.name
    for path in out.glob("*.parquet"):
        assert pq.read_schema(path).names == ["sample_id", "split", "domain", "n_tokens"]


def named(sample_ids: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(sample_ids, pa.string())])


def test_reader_maps_rows_to_samples(tokenized: Tokenized, build: Build) -> None:
    out, _ = build(tokenized({"a": texts(0, 30), "b": texts(100, 20)}))
    both, pool = read_features(out), read_features(out, ["pool"])
    assert 0 < len(pool.embeddings) < len(both.embeddings)
    assert isinstance(pool.embeddings.files[0], np.memmap)
    names = pool.sample_ids.to_pylist()[::-1]
    assert np.array_equal(embeddings_of(out, pa.chunked_array([names])).take(), pool.embeddings.take()[::-1])
    assert np.array_equal(np.concatenate(list(both.embeddings.blocks(7))), both.embeddings.take())
    with pytest.raises(ValueError, match="1 samples have no features, the first is 0000"):
        embeddings_of(out, pa.chunked_array([[names[0], "0" * 64]]))
