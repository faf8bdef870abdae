"""What an asset's page shows first, and the table of an artifact."""

from __future__ import annotations

import base64
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import read_json
from plumbline.graph.metadata import in_reading_order, metadata_of
from plumbline.graph.table import COLUMNS, TABLES, table_metadata

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_the_sentence_comes_first_and_long_json_last(tmp_path: Path) -> None:
    out = tmp_path / "data/calibration_report"
    out.mkdir(parents=True)
    (out / "plot.png").write_bytes(PIXEL)
    (out / "report.html").write_text("<p>")
    summary = {
        "layers": {"a": 1},
        "rows": [{"a": 1}],
        "tokens": 3,
        "mlflow_run": "http://127.0.0.1:5000/#/runs/1",
        "headline": "b is better",
        "notes": ["one thing", "another thing"],
    }
    metadata = metadata_of(tmp_path, out, summary, {"seconds": 1.5, "params": {"n": 1}})
    assert list(metadata) == [
        *("headline", "notes", "mlflow_run", "report", "plot", "tokens", "rows", "layers", "seconds", "params")
    ]
    assert metadata["report"] == dg.MetadataValue.url("/pages/calibration_report/report.html")
    assert metadata["mlflow_run"] == dg.MetadataValue.url("http://127.0.0.1:5000/#/runs/1")


def test_the_address_of_a_page_is_quoted(tmp_path: Path) -> None:
    out = tmp_path / "data/sample_page/a b#"
    out.mkdir(parents=True)
    (out / "samples.html").write_text("<p>")
    assert metadata_of(tmp_path, out, {}, {})["samples"].url == "/pages/sample_page/a%20b%23/samples.html"


def test_entries_of_a_kind_keep_their_order() -> None:
    assert list(in_reading_order({"b": 1, "a": 2, "c": "two words", "d": "one"})) == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("asset", "folder"),
    [("raw_corpus", ""), ("tokenized_samples", ""), ("calibration_set", "random-8")],
)
def test_a_table_says_its_rows_and_what_its_columns_hold(artifacts: Path, asset: str, folder: str) -> None:
    out = artifacts / asset / folder
    table = table_metadata(asset, out)
    files = sorted(out.glob(TABLES[asset]))
    assert table["dagster/row_count"] == sum(pq.read_table(file).num_rows for file in files) > 0
    columns = table["dagster/column_schema"].columns
    assert [column.name for column in columns] == pq.read_schema(files[0]).names
    assert [column.name for column in columns if not column.description] == []


def test_the_rows_of_the_corpus_are_its_documents(artifacts: Path) -> None:
    documents = read_json(artifacts / "raw_corpus/manifest.json")["totals"]["documents"]
    assert table_metadata("raw_corpus", artifacts / "raw_corpus")["dagster/row_count"] == documents


def test_columns_of_figures_are_described() -> None:
    from plumbline.calibration_set.reader import SCHEMA
    from plumbline.raw_corpus.shards import DOCUMENTS
    from plumbline.tokenized_samples.batches import SAMPLES

    assert {*SCHEMA.names, *DOCUMENTS.names, *SAMPLES.names} <= COLUMNS.keys()


def test_what_holds_no_table_has_no_rows(tmp_path: Path) -> None:
    assert table_metadata("quantized_model", tmp_path) == {} == table_metadata("raw_corpus", tmp_path)
