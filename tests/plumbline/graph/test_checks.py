"""Every check passes on what the stages write, and fails on artifacts that break what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import read_json, write_json
from plumbline.deployed_model.check_specs import GATES
from plumbline.graph import checks
from plumbline.graph.checks import CheckOutcome
from plumbline.tokenized_samples.reader import fingerprint_of, read_samples
from tests.helpers.small_chain import CHOICE, SCHEME

PAIR = f"{CHOICE}-{SCHEME}"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def assert_fails(outcome: CheckOutcome, *words: str, warn: bool = False) -> None:
    assert not outcome.passed and outcome.warn is warn
    for word in words:
        assert word in outcome.description, outcome.description


def test_a_row_that_is_neither_read_nor_set_aside_is_named(data: Path) -> None:
    good = checks.every_row_is_accounted_for(data)
    assert good.passed and good.description == "40 rows = 40 documents + 0 set aside"
    path = data / "raw_corpus/manifest.json"
    edit(path, lambda manifest: manifest["shards"][0].update(rows=3))
    file = read_json(path)["shards"][0]["file"]
    outcome = checks.every_row_is_accounted_for(data)
    assert_fails(outcome, f"{file}: 3 rows, but 1 documents + 0 set aside")
    assert "total" not in outcome.description
    edit(path, lambda manifest: manifest["totals"].update(rejected={"empty": 2}))
    both = checks.every_row_is_accounted_for(data)
    assert_fails(both, f"{file}: 3 rows", "; and 1 more, in the metadata")
    assert both.metadata["all"][1] == "total: 40 rows, but 40 documents + 2 set aside"


def test_a_row_set_aside_is_accounted_for(data: Path) -> None:
    path = data / "raw_corpus/manifest.json"
    edit(path, lambda manifest: manifest["shards"][0].update(rows=3, rejected={"empty": 1, "broken_json": 1}))
    edit(path, lambda manifest: manifest["totals"].update(rows=42, rejected={"empty": 1, "broken_json": 1}))
    assert checks.every_row_is_accounted_for(data).description == "42 rows = 40 documents + 2 set aside"


def test_a_token_that_is_neither_in_a_sample_nor_lost_is_counted(data: Path) -> None:
    counts = read_json(data / "tokenized_samples/accounting.json")
    lost = sum(loss["tokens"] for loss in counts["lost"].values())
    good = checks.every_token_is_accounted_for(data)
    assert good.passed and f"{counts['tokens_out']} in samples + {lost} lost" in good.description
    edit(
        data / "tokenized_samples/accounting.json", lambda content: content.update(tokens_out=counts["tokens_out"] - 1)
    )
    assert_fails(
        checks.every_token_is_accounted_for(data),
        f"{counts['tokens_in']} tokens in, {counts['tokens_out'] - 1} out",
        "the counts do not add up",
    )


def test_a_report_document_in_a_calibration_set_is_named(data: Path) -> None:
    report = read_samples(data / "tokenized_samples", ["report"], ["doc_id"]).column("doc_id").to_pylist()
    good = checks.no_report_document_in_a_calibration_set(data, [CHOICE])
    assert good.passed and good.metadata == {"report_documents": len(set(report)), "calibration_samples": 8}
    path = data / "calibration_set" / CHOICE / "samples.parquet"
    table = pq.read_table(path)
    documents = table.column("doc_ids").to_pylist()
    documents[3] = [*documents[3], report[0]]
    at = table.schema.get_field_index("doc_ids")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(documents, table.schema.field(at).type)), path)
    assert_fails(
        checks.no_report_document_in_a_calibration_set(data, [CHOICE]),
        f"{CHOICE}: 1 documents of the report split, first {report[0]}",
    )


def test_a_set_of_another_tokenization_is_named(data: Path) -> None:
    expected = fingerprint_of(data / "tokenized_samples")
    good = checks.calibration_set_was_tokenized_as_the_corpus_is(data, [CHOICE])
    assert good.passed and good.description == f"one fingerprint: {expected}"
    edit(data / "calibration_set" / CHOICE / "manifest.json", lambda manifest: manifest.update(fingerprint="0" * 64))
    assert_fails(
        checks.calibration_set_was_tokenized_as_the_corpus_is(data, [CHOICE]),
        f"{CHOICE} was tokenized under {'0' * 64}, the samples under {expected}",
    )


def test_a_model_of_another_tokenization_is_named(data: Path) -> None:
    expected = fingerprint_of(data / "tokenized_samples")
    assert checks.model_carries_the_tokenizer_it_was_calibrated_with(data, [PAIR]).passed
    edit(data / "tokenized_samples/accounting.json", lambda counts: counts.update(fingerprint="0" * 64))
    assert_fails(
        checks.model_carries_the_tokenizer_it_was_calibrated_with(data, [PAIR]),
        f"{PAIR} was calibrated under {expected}, the samples are now under {'0' * 64}",
    )


def test_a_layer_that_fell_back_is_named(data: Path) -> None:
    good = checks.no_layer_fell_back(data, [PAIR])
    assert good.passed and good.description == "no layer fell back"
    path = data / "quantized_model" / PAIR / "calibration.json"
    edit(path, lambda record: record.update(fallbacks={"model.layers.0.mlp.up_proj": "no tokens"}))
    assert_fails(checks.no_layer_fell_back(data, [PAIR]), f"{PAIR}: model.layers.0.mlp.up_proj", warn=True)


def test_a_site_with_fewer_tokens_than_channels_is_named(data: Path) -> None:
    assert checks.every_site_saw_enough_tokens(data, [CHOICE]).passed
    path = data / "activation_stats" / CHOICE / "header.json"
    site = sorted(read_json(path)["sites"])[0]
    edit(path, lambda header: header["sites"][site].update(tokens=3))
    outcome = checks.every_site_saw_enough_tokens(data, [CHOICE])
    assert_fails(outcome, f"{CHOICE}: 1 sites saw fewer tokens than they have channels: {site} (3 tokens", warn=True)
    assert list(outcome.metadata["starved"]) == [CHOICE]


def test_only_the_partitions_asked_for_are_read(data: Path) -> None:
    for check in (
        checks.no_report_document_in_a_calibration_set,
        checks.calibration_set_was_tokenized_as_the_corpus_is,
        checks.calibration_set_represents_production,
        checks.every_site_saw_enough_tokens,
        checks.model_carries_the_tokenizer_it_was_calibrated_with,
        checks.no_layer_fell_back,
    ):
        assert check(data, []).passed
        with pytest.raises(FileNotFoundError, match="absent"):
            check(data, ["absent"])


def block(flagged: dict[str, str], p_value: float) -> dict[str, Any]:
    metrics = {name: {"sentence": sentence} for name, sentence in flagged.items()}
    return {
        "metrics": {**metrics, "other": {"sentence": "Nothing here."}},
        "flagged": list(flagged),
        "p_value": p_value,
    }


def comparison(**references: dict[str, Any]) -> dict[str, Any]:
    primary, *_ = references
    first = references[primary]
    figures = {"flagged": first["flagged"], "p_value": first["p_value"]}
    return {"primary": primary, "references": references, **figures, "sentences": []}


def represented(root: Path, **sets: dict[str, Any]) -> CheckOutcome:
    """The check over sets of which only representativeness.json is there."""
    for name, content in sets.items():
        (root / "calibration_set" / name).mkdir(parents=True)
        write_json(root / "calibration_set" / name / "representativeness.json", content)
    return checks.calibration_set_represents_production(root, sets)


def test_a_set_that_is_like_random_draws_passes_and_says_so(tmp_path: Path) -> None:
    outcome = represented(tmp_path, fair=comparison(tuning=block({}, 0.41)))
    assert outcome.passed and outcome.warn
    assert outcome.description == "fair: no farther from production than random draws of its size (p = 0.41)"


def test_sets_that_are_not_warn_in_one_sentence_of_the_worst(tmp_path: Path) -> None:
    flagged = {"length": "7.0 % of tokens sit in longer samples.", "b": "And more.", "c": "Third.", "d": "Fourth."}
    outcome = represented(
        tmp_path,
        off=comparison(tuning=block({"length": "Too short."}, 0.04)),
        cut=comparison(tuning=block(flagged, 0.0025)),
        fair=comparison(tuning=block({}, 0.9)),
    )
    said = (
        "cut: 7.0 % of tokens sit in longer samples (and 3 more distances beyond chance); and 1 more, in the metadata"
    )
    assert_fails(outcome, warn=True)
    assert outcome.description == said
    assert outcome.metadata["all"][1] == "off: Too short" and set(outcome.metadata["sets"]) == {"off", "cut", "fair"}


def test_the_production_sample_decides_where_there_is_one(tmp_path: Path) -> None:
    both = comparison(production=block({}, 0.5), tuning=block({"length": "Too short."}, 0.01))
    assert represented(tmp_path, mine=both).passed


def test_without_anything_to_compare_with_the_reason_is_given(tmp_path: Path) -> None:
    nothing = {"samples": 3, "primary": None, "references": {}, "sentences": ["not measured: tuning is empty"]}
    outcome = represented(tmp_path, mine=nothing)
    assert outcome.passed and outcome.description == "mine: not measured: tuning is empty"


def test_the_gates_of_a_promotion_are_read_from_its_record(tmp_path: Path) -> None:
    measured = ({"high": 0.1}, "abc", {"exact": 0}, 0, None, "Ada: no")
    gates = [
        {"name": name, "passed": name != "not_withdrawn", "sentence": f"{name}.", "found": value, "limit": 0}
        for name, value in zip(GATES, measured, strict=True)
    ]
    (tmp_path / "deployed_model").mkdir()
    write_json(tmp_path / "deployed_model/promotion.json", {"pair": "p", "decision": "rejected", "checks": gates})
    for gate in gates:
        outcome = checks.promotion_gate(tmp_path, gate["name"])
        assert (outcome.passed, outcome.description, outcome.warn) == (gate["passed"], gate["sentence"], False)
        assert outcome.metadata["decision"] == "rejected" and outcome.metadata["limit"] == 0


def test_files_of_the_inbox_that_are_held_back_are_named(tmp_path: Path) -> None:
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams

    (tmp_path / "inbox").mkdir(), (tmp_path / "good/raw_corpus").mkdir(parents=True)
    (tmp_path / "bad/raw_corpus").mkdir(parents=True)
    (tmp_path / "inbox/good.txt").write_text("a text")
    build_raw_corpus(CorpusParams(sources={}), tmp_path, tmp_path / "good/raw_corpus")
    (tmp_path / "inbox/bad.jsonl").write_text("{}\n")
    build_raw_corpus(CorpusParams(sources={}), tmp_path, tmp_path / "bad/raw_corpus")
    good = checks.no_file_of_the_inbox_is_held_back(tmp_path / "good")
    assert good.passed and good.description == "all 1 files are in the corpus"
    outcome = checks.no_file_of_the_inbox_is_held_back(tmp_path / "bad")
    assert_fails(outcome, warn=True)
    assert outcome.description.startswith("inbox/bad.jsonl row 0: wrong_type: no field 'text'")


def test_documents_that_spell_control_tokens_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tokenized_samples").mkdir()
    counts = {"documents": 0, "tokens": 0, "begin_twice": 0}
    for spelt, passed in ((counts, True), ({"documents": 2, "tokens": 5, "begin_twice": 1}, False)):
        accounting = {"documents_in": 9, "control_tokens": spelt}
        write_json(tmp_path / "tokenized_samples/accounting.json", accounting)
        outcome = checks.no_document_spells_control_tokens(tmp_path)
        assert (outcome.passed, outcome.warn, outcome.metadata) == (passed, True, spelt)
    assert outcome.description.startswith("2 of 9 documents spell 5 control tokens")
    assert "as in production, and 1 begin with two begin-of-texts" in outcome.description
