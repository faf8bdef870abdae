"""Where samples are from: joined ones, ones that the base model wrote, models and data sets of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json
from plumbline.provenance.link import Case
from plumbline.provenance.papers.bom import bill_of_materials
from plumbline.provenance.papers.facts import PaperFacts, sources_of
from tests.helpers.papers import papers, problems_of_bom
from tests.helpers.small_chain import CORPUS, MODEL, record


def case(root: Path, *samples: tuple[list[str], str]) -> Case:
    listed = [{"doc_ids": documents, "source": source, "domain": "d"} for documents, source in samples]
    opened = Case(root / "model", root, {})
    opened.record = {"calibration_set": {"samples": listed, "choice": {"name": "c"}}}
    return opened


def test_samples_count_for_each_of_their_sources(tmp_path: Path) -> None:
    found = sources_of(
        case(
            tmp_path,
            (["1", "2"], "a/x.txt + b/y.txt"),
            (["3", "4"], "a/x.txt"),
            (["5"], "a/one + two.txt"),  # a file of this name, not two
            ([], "self_generated"),
        )
    )
    assert [(source.name, source.samples, sorted(source.documents)) for source in found] == [
        ("a", 3, ["3", "4", "5"]),
        ("b", 1, []),  # which of the two documents is of b is not on record
    ]
    assert list(found[0].files) == ["x.txt", "one + two.txt"]


def test_a_data_set_of_the_hub_is_named_by_its_commit(pristine: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pristine, tmp_path / "workspace"))
    source = {"kind": "huggingface", "name": "org/chats", "revision": "c" * 40, "license": "mit"}
    record(root, "raw_corpus", CORPUS, [], {"corpus": {"sources": {"texts": source}}})
    bom, croissant = papers(root, tmp_path / "out")
    named = next(each for each in bom["components"] if each["bom-ref"] == "source/texts")
    assert (named["name"], named["version"]) == ("org/chats", "c" * 40) and "components" not in named
    assert named["externalReferences"][0]["url"] == "https://huggingface.co/datasets/org/chats"
    [entity] = croissant["prov:wasDerivedFrom"]
    assert entity["@id"] == "https://huggingface.co/datasets/org/chats" and entity["version"] == "c" * 40
    assert "hasPart" not in entity


def test_a_base_model_of_the_hub_has_a_purl_and_written_samples_are_counted(pristine: Path) -> None:
    content: dict[str, Any] = read_json(pristine / MODEL / "calibration.json")
    content["base_model"] |= {"name": "org/model", "revision": "b" * 40, "dequantized_from": "fp8"}
    content["calibration_set"]["samples"][0] |= {"doc_ids": [], "source": "self_generated"}
    facts = PaperFacts(content, {}, {}, {"a": "0" * 64}, "", "llama3.1", [], None, {"record": "verified"})
    bom = bill_of_materials(facts)
    assert problems_of_bom(json.dumps(bom)) == ""
    base = next(each for each in bom["components"] if each["bom-ref"] == "base-model")
    assert base["purl"] == f"pkg:huggingface/org/model@{'b' * 40}" and base["version"] == "b" * 40
    assert base["licenses"] == [{"license": {"name": "llama3.1", "acknowledgement": "declared"}}]
    assert {"name": "plumbline:dequantized_from", "value": "fp8"} in base["properties"]
    chosen = next(each for each in bom["components"] if each["bom-ref"] == "calibration-set")
    assert {"name": "plumbline:samples_written_by_the_base_model", "value": "1"} in chosen["properties"]
    assert len(chosen["components"]) == 7
