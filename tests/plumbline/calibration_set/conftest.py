"""Small tokenized_samples artifacts written by their format, without a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plumbline.artifact import write_json, write_table
from plumbline.calibration_set.strategies.base import COLUMNS, Pool, Readers, Samples, sample_id
from plumbline.sample_features.reader import Embeddings
from plumbline.sample_features.signatures import Signatures
from plumbline.tokenized_samples.batches import SAMPLES

BOS = 1
FINGERPRINT = "f" * 64


def sample(
    number: int, length: int, split: str = "pool", domain: str = "prose", doc: str | None = None
) -> dict[str, Any]:
    """A sample of `length` tokens: BOS, then tokens that no sample of another number has."""
    ids = [BOS] + [1000 * (number + 1) + position for position in range(length - 1)]
    return {
        "sample_id": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest(),
        "doc_id": doc or f"doc-{split}-{number}",
        "split": split,
        "domain": domain,
        "source": f"test/{domain}.txt",
        "window": 0,
        "start": 0,
        "n_tokens": length,
        "n_special": 1,
        "input_ids": ids,
    }


def write_samples(folder: Path, rows: Sequence[dict[str, Any]], shards: int = 1) -> Path:
    """Write a tokenized_samples artifact; row i goes to shard i % shards."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(shards):
        part = list(rows[number::shards])
        write_table(folder / "shards" / f"{number:016x}.parquet", pa.Table.from_pylist(part, SAMPLES))
        entries.append({"shard": f"{number:016x}", "samples": len(part)})
    nothing = {
        "shard": pa.array([], pa.string()),
        "sample_id": pa.array([], pa.string()),
        "row": pa.array([], pa.int64()),
    }
    write_table(folder / "duplicates.parquet", pa.table(nothing))
    write_json(
        folder / "accounting.json",
        {"fingerprint": FINGERPRINT, "fingerprint_parts": {"max_length": 512}, "shards": entries},
    )
    return folder


def make_pool(
    lengths: Sequence[int] = (),
    order: Sequence[int] | None = None,
    *,
    rows: Sequence[dict[str, Any]] | None = None,
    tuning: Sequence[dict[str, Any]] = (),
    production: Sequence[dict[str, Any]] | None = None,
    embeddings: dict[str, Any] | None = None,
    signatures: Signatures | None = None,
    load_model: Callable[[], Any] | None = None,
    load_tokenizer: Callable[[], Any] | None = None,
) -> Pool:
    """A pool in memory.

    Args:
        lengths: one sample of each length; or `rows`, as `sample` makes them.
        order: the order on disk, which nothing may depend on once the pool is sorted by id (but `stream`).
        embeddings: by sample id; signatures: of all samples whose signature is stored. What is not given fails when a
            strategy reads it.
    """
    mine = [sample(number, length) for number, length in enumerate(lengths)] if rows is None else list(rows)
    mine = [mine[i] for i in (range(len(mine)) if order is None else order)]
    everything = [*mine, *tuning, *(production or ())]
    tokens = {row["sample_id"]: np.array(row["input_ids"], np.int32) for row in everything}

    def read_embeddings(names: pa.ChunkedArray) -> Embeddings:
        if embeddings is None:
            raise AssertionError("a strategy that needs no embeddings has read them")
        rows = np.array([embeddings[name] for name in names.to_pylist()], np.float16)
        return Embeddings((rows,), np.zeros(len(rows), np.int32), np.arange(len(rows)), rows.shape[-1])

    def read_signatures(names: Sequence[str]) -> Signatures:
        if signatures is None:
            raise AssertionError("a strategy that needs no signatures has read them")
        return signatures.take([signatures.sample_ids.index(name) for name in names])

    def nothing() -> Any:
        raise AssertionError("a strategy that needs no model has loaded one")

    readers = Readers(
        lambda names: {name: tokens[name] for name in names},
        read_embeddings,
        read_signatures,
        lambda: [] if signatures is None else signatures.sample_ids,
    )

    def table_of(part: Sequence[dict[str, Any]]) -> tuple[pa.Table, np.ndarray]:
        place = sorted(range(len(part)), key=lambda i: part[i]["sample_id"])
        table = pa.Table.from_pylist([part[i] for i in place], SAMPLES).select(list(COLUMNS))
        return table, np.array(place, dtype=np.int64)

    table, stream = table_of(mine)
    return Pool(
        table,
        readers,
        stream,
        Samples(table_of(tuning)[0], readers),
        None if production is None else Samples(table_of(production)[0], readers),
        load_model or nothing,
        load_tokenizer or nothing,
    )


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., Path]:
    """choose(samples, strategy=..., n=..., ...) -> folder of the calibration set."""
    from plumbline.calibration_choice.build import build_calibration_choice
    from plumbline.calibration_set.build import build_calibration_set
    from plumbline.calibration_set.pool import Sources

    count = 0

    def make(samples: Path, features: Path | None = None, **params: Any) -> Path:
        nonlocal count
        count += 1
        choice, out = tmp_path / f"choice{count}", tmp_path / f"set{count}"
        choice.mkdir()
        out.mkdir()
        build_calibration_choice("mine", params, choice)
        build_calibration_set(choice, Sources(samples, features), out)
        return out

    return make


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The samples of a set, reasons parsed."""
    from plumbline.calibration_set.reader import read_calibration_set

    rows: list[dict[str, Any]] = read_calibration_set(path).to_pylist()
    for row in rows:
        row["reason"] = json.loads(row["reason"])
        assert row["sample_id"] == sample_id(np.array(row["input_ids"], np.int32))
        assert row["n_tokens"] == len(row["input_ids"])
    return rows
