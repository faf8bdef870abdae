"""The CycloneDX bill of materials: valid by the standard's schema, and true."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import canonical_json, read_json
from plumbline.provenance.papers.bom import NAMESPACE
from tests.helpers.papers import papers, problems_of_bom
from tests.helpers.small_chain import MODEL, flip, run


def values(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"].removeprefix("plumbline:"): each["value"] for each in component["properties"]}


def part(bom: dict[str, Any], reference: str) -> dict[str, Any]:
    return next(each for each in bom["components"] if each["bom-ref"] == reference)


def test_it_is_valid_and_the_validator_looks_at_the_card(written: Path) -> None:
    text = (written / "bom.cdx.json").read_text("utf-8")
    assert problems_of_bom(text) == ""
    wrong = json.loads(text)
    wrong["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] = 1.5
    assert "is not of type 'string'" in problems_of_bom(json.dumps(wrong))


def test_the_validator_looks_at_addresses(written: Path) -> None:
    wrong = json.loads((written / "bom.cdx.json").read_text("utf-8"))
    wrong["externalReferences"] = [{"type": "other", "url": "https://example.org/a b"}]
    assert "On instance['externalReferences'][0]['url']" in problems_of_bom(json.dumps(wrong))


def test_every_reference_leads_to_one_component(bom: dict[str, Any]) -> None:
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend([value["bom-ref"]] if "bom-ref" in value else [])
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(bom)
    assert len(found) == len(set(found))
    named = [each["ref"] for each in bom["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"]]
    named += [name for each in bom["dependencies"] for name in (each["ref"], *each.get("dependsOn", []))]
    named += [name for each in bom["compositions"] for name in each["assemblies"]]
    assert set(named) <= set(found)


def test_files_and_digests_are_those_on_disk(bom: dict[str, Any], evaluated: Path) -> None:
    model = bom["metadata"]["component"]
    listed = {each["name"]: each["hashes"][0]["content"] for each in model["components"]}
    on_disk = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (evaluated / MODEL).iterdir()}
    assert listed == on_disk
    root = hashlib.sha256(b"".join(bytes.fromhex(on_disk[name]) for name in sorted(on_disk))).hexdigest()
    assert model["version"] == root and values(model)["model_signing.root_digest"] == f"sha256:{root}"
    sources = part(bom, "source/texts")
    assert sources["components"], "the files of the corpus have digests"
    for file in sources["components"]:
        content = (evaluated / "texts" / file["name"]).read_bytes()
        assert file["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]


def test_base_model_set_and_documents(bom: dict[str, Any], evaluated: Path) -> None:
    record = read_json(evaluated / MODEL / "calibration.json")
    base, chosen = part(bom, "base-model"), part(bom, "calibration-set")
    assert base["name"] == "base" and values(base)["base_model"] == record["base_model"]["digest"]
    assert base["licenses"] == [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}]
    [ancestor] = bom["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor == {key: value for key, value in base.items() if key != "bom-ref"}
    assert chosen["version"] == record["calibration_set"]["digest"]
    documents = {document for sample in record["calibration_set"]["samples"] for document in sample["doc_ids"]}
    assert {each["version"] for each in chosen["components"]} == documents
    for each in chosen["components"]:
        source, name = each["name"].split("/", 1)
        text = (evaluated / source / name).read_text("utf-8")
        assert each["version"] == hashlib.sha256(f"text\0{text}".encode()).hexdigest()
    manifest = read_json(evaluated / "data/calibration_set/random-8/manifest.json")
    assert values(chosen)["tokens"] == str(manifest["tokens"])


def test_figures_are_those_of_the_evaluation_with_intervals(bom: dict[str, Any], evaluated: Path) -> None:
    metrics = read_json(evaluated / "data/evaluation" / MODEL.split("/")[-1] / "metrics.json")
    card = bom["metadata"]["component"]["modelCard"]
    figures = {
        (each["type"], each.get("slice", "")): each for each in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    kl = "KL divergence from the base model, mean, nats per token"
    assert figures[kl, ""]["value"] == f"{metrics['kl_mean']:.6g}"
    assert figures[kl, "domain prose"]["value"] == f"{metrics['by_domain']['prose']['kl_mean']:.6g}"
    table = pq.read_table(evaluated / "data/evaluation" / MODEL.split("/")[-1] / "documents.parquet")
    per_document = table["kl_sum"].to_numpy() / table["n_tokens"].to_numpy()  # documents of equal length
    error = np.sqrt(sum(per_document[rows].var(ddof=1) for rows in (slice(12), slice(12, None))) / 48)
    ends = figures[kl, ""]["confidenceInterval"]
    half = (float(ends["upperBound"]) - float(ends["lowerBound"])) / 2
    assert 1.9 * error < half < 2.5 * error  # a bootstrap with few documents is a little wider than a normal interval
    assert values(card)["confidence"] == "0.95"
    assert "47,112 bytes of weights instead of 123,456" in card["considerations"]["performanceTradeoffs"][0]


def test_what_stayed_in_full_precision_is_said(bom: dict[str, Any]) -> None:
    card = bom["metadata"]["component"]["modelCard"]
    limits = " ".join(card["considerations"]["technicalLimitations"])
    assert "In full precision: head, 1 (the scheme's ignore: lm_head)." in limits
    said = values(card)
    assert said["scheme.method"] == "rtn" and said["quantized.share_of_all_weights"] == "0.346696"
    assert said["weights.embedding.quantized"] == "0" and said["weights.embedding"] == "9600"


def test_what_is_not_known_is_left_out(pristine: Path, tmp_path: Path) -> None:
    """No evaluation, no licence, no revision, no time: the document says none of them, and is still valid."""
    bom, _ = papers(pristine, tmp_path)
    assert problems_of_bom((tmp_path / "bom.cdx.json").read_text("utf-8")) == ""
    text = json.dumps(bom)
    for absent in ("licenses", "quantitativeAnalysis", "timestamp", "purl", "confidence", "null", "evaluation-texts"):
        assert absent not in text, absent
    assert "What quantization changed was not measured." in text


def test_the_serial_number_is_of_the_content(bom: dict[str, Any]) -> None:
    serial = bom.pop("serialNumber")
    digest = hashlib.sha256(canonical_json(bom).encode()).hexdigest()
    assert serial == f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}"


def test_same_bytes_in_another_folder_zone_and_locale(
    written: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path(shutil.copytree(evaluated, tmp_path / "somewhere else" / "w"))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    try:
        papers(elsewhere, tmp_path / "out")
    finally:
        os.umask(before)
    for name in ("bom.cdx.json", "croissant.json"):
        assert (tmp_path / "out" / name).read_bytes() == (written / name).read_bytes()


@pytest.mark.parametrize("file", [f"{MODEL}/model.safetensors", f"{MODEL}/calibration.json", "texts"])
def test_papers_of_an_altered_chain_are_not_written(file: str, evaluated: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(evaluated, tmp_path / "workspace"))
    if file == "texts":
        file = next((root / "data/raw_corpus/shards").glob("*.parquet")).relative_to(root).as_posix()
    flip(root / file, -40)
    result = run(
        root, "audit", str(root / MODEL), "--bom", str(tmp_path / "b.json"), "--croissant", str(tmp_path / "c")
    )
    assert result.exit_code == 1 and result.output.count("NOT WRITTEN") == 2 and "tampered" in result.output
    assert not (tmp_path / "b.json").exists() and not (tmp_path / "c").exists()


def test_links_that_could_not_be_checked_are_named(evaluated: Path, tmp_path: Path) -> None:
    """A copy of the model alone: what it records is written, and what nobody compared is said."""
    model = Path(shutil.copytree(evaluated / MODEL, tmp_path / "alone"))
    empty = tmp_path / "workspace"
    empty.mkdir()
    (empty / "params.yaml").write_text("model: {name: base}\n", encoding="utf-8")
    result = run(
        empty, "audit", str(model), "--bom", str(tmp_path / "bom.json"), "--croissant", str(tmp_path / "c.json")
    )
    assert result.exit_code == 1
    bom = read_json(tmp_path / "bom.json")
    assert problems_of_bom((tmp_path / "bom.json").read_text("utf-8")) == ""
    said = values(bom["metadata"]["component"])
    assert "documents" in said["audit.not_checked"] and said["audit.verified"].startswith("record, weights")
    assert "hashes" not in json.dumps(bom["components"])  # the corpus is not here
    assert not (tmp_path / "c.json").exists() and "NOT WRITTEN" in result.output  # nor the set


def test_a_paper_is_not_written_into_what_has_a_hash(evaluated: Path, tmp_path: Path) -> None:
    for target in (evaluated / MODEL / "bom.json", evaluated / "data/calibration_set/random-8/c.json"):
        result = run(evaluated, "audit", str(evaluated / MODEL), "--bom", str(target))
        assert result.exit_code == 2 and "whose hash is on record" in " ".join(result.output.split())
        assert not target.exists()
    result = run(evaluated, "audit", str(evaluated / MODEL), "--croissant", str(tmp_path / "none" / "c.json"))
    assert result.exit_code == 2 and "does not exist" in result.output
