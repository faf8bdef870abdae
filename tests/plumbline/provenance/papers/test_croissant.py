"""Croissant of a calibration set: mlcroissant reads its records, and no text is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from plumbline.calibration_set.reader import SCHEMA
from plumbline.provenance.papers.croissant import COLUMNS
from tests.helpers.papers import papers
from tests.helpers.small_chain import CORPUS, SET, record, run

SAMPLES = f"{SET}/samples.parquet"


@pytest.fixture
def mlc() -> Any:
    return pytest.importorskip("mlcroissant", reason="needs the extra `papers`")


def test_mlcroissant_reads_every_record(mlc: Any, written: Path, evaluated: Path) -> None:
    dataset = mlc.Dataset(str(written / "croissant.json"), mapping={"samples.parquet": str(evaluated / SAMPLES)})
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    rows = pq.read_table(evaluated / SAMPLES).to_pylist()
    records = list(dataset.records("samples"))
    assert len(records) == len(rows) == 8
    for found, row in zip(records, rows, strict=True):
        assert set(found) == {f"samples/{name}" for name in row}
        assert list(found["samples/input_ids"]) == row["input_ids"]
        assert [each.decode() for each in found["samples/doc_ids"]] == row["doc_ids"]
        assert found["samples/sample_id"].decode() == row["sample_id"]
        assert int(found["samples/n_tokens"]) == row["n_tokens"]
    documents = {row["documents/id"]: row for row in dataset.records("documents")}
    assert {document for row in rows for document in row["doc_ids"]} == documents.keys()


def test_the_file_is_read_beside_the_document_and_an_altered_one_is_refused(
    mlc: Any, written: Path, evaluated: Path, tmp_path: Path
) -> None:
    shutil.copy(written / "croissant.json", tmp_path)
    shutil.copy(evaluated / SAMPLES, tmp_path)
    path = str(tmp_path / "croissant.json")
    assert len(list(mlc.Dataset(path).records("samples"))) == 8
    with (tmp_path / "samples.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(Exception, match="Download"):
        list(mlc.Dataset(path).records("samples"))


def test_file_digest_size_and_columns(croissant: dict[str, Any], evaluated: Path) -> None:
    [file], data = croissant["distribution"], (evaluated / SAMPLES).read_bytes()
    assert file["sha256"] == hashlib.sha256(data).hexdigest() and file["contentSize"] == f"{len(data)} B"
    assert list(COLUMNS) == SCHEMA.names
    for field in SCHEMA:
        assert COLUMNS[field.name][1] == str(field.type).startswith("list"), field.name


def test_no_text_and_no_token_is_in_it(croissant: dict[str, Any], evaluated: Path) -> None:
    text = json.dumps(croissant)
    for path in (evaluated / "texts").rglob("*.txt"):
        words = path.read_text("utf-8").split()
        assert " ".join(words[:4]) not in text
    assert "input_ids" in text and "[" + ", ".join(map(str, [1, 2])) not in text
    assert str(evaluated) not in text


def test_it_says_where_the_samples_are_from(croissant: dict[str, Any], evaluated: Path) -> None:
    assert croissant["version"].endswith(croissant["identifier"].split(":")[1])
    [source] = croissant["prov:wasDerivedFrom"]
    assert source["prov:label"] == "texts" and "license" not in source and "license" not in croissant
    for file in source["hasPart"]:
        content = (evaluated / "texts" / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    activity = {each["name"]: each["value"] for each in croissant["prov:wasGeneratedBy"]["additionalProperty"]}
    assert activity["choice.strategy"] == "random" and activity["counts.selected"] == 8
    assert "8 samples" in croissant["description"] and "3 code, 5 prose" in croissant["description"]


@pytest.mark.parametrize(
    ("licence", "in_croissant", "in_bom"),
    [
        ("cc-by-4.0", "https://spdx.org/licenses/CC-BY-4.0", {"license": {"id": "CC-BY-4.0"}}),
        ("Our terms of 2026", "Our terms of 2026", {"license": {"name": "Our terms of 2026"}}),
    ],
)
def test_a_licence_in_the_parameters_is_named(
    licence: str, in_croissant: str, in_bom: dict[str, Any], pristine: Path, tmp_path: Path, mlc: Any
) -> None:
    root = Path(shutil.copytree(pristine, tmp_path / "workspace"))
    texts = {"texts": {"kind": "directory", "path": "texts", "license": licence}}
    record(root, "raw_corpus", CORPUS, [], {"corpus": {"sources": texts}})
    bom, croissant = papers(root, tmp_path / "out")
    assert croissant["license"] == [in_croissant]
    source = next(each for each in bom["components"] if each["bom-ref"] == "source/texts")
    [named] = source["licenses"]
    assert named["license"].pop("acknowledgement") == "declared" and named == in_bom
    assert mlc.Dataset(str(tmp_path / "out" / "croissant.json")).metadata.license == [in_croissant]


def test_a_set_that_was_replaced_comes_from_dvcs_cache(evaluated: Path, written: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(evaluated, tmp_path / "workspace"))
    shutil.rmtree(root / SET)
    papers(root, tmp_path / "out")
    assert (tmp_path / "out/croissant.json").read_bytes() == (written / "croissant.json").read_bytes()


def test_a_set_that_is_nowhere_is_a_sentence(evaluated: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(evaluated, tmp_path / "workspace"))
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    md5 = next(out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == SET)
    (root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    shutil.rmtree(root / SET)
    result = run(
        root, "audit", str(root / "data/quantized_model/random-8-w4a16-rtn"), "--croissant", str(tmp_path / "c")
    )
    assert result.exit_code == 1 and not (tmp_path / "c").exists()
    assert "NOT WRITTEN" in result.output and "DVC's cache lacks the set" in " ".join(result.output.split())
