from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration import checks
from plumbline.artifact import write_json


def block(flagged: dict[str, str], p: float) -> dict[str, Any]:
    metrics = {name: {"sentence": sentence} for name, sentence in flagged.items()}
    return {"metrics": {**metrics, "other": {"sentence": "Nothing here."}}, "flagged": list(flagged), "p_value": p}


def result(**references: dict[str, Any]) -> dict[str, Any]:
    primary, *_ = references
    first = references[primary]
    return {
        "primary": primary,
        "references": references,
        "flagged": first["flagged"],
        "p_value": first["p_value"],
        "sentences": [],
    }


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checks, "_folder", lambda asset: tmp_path / asset)
    folder = tmp_path / "calibration_set"
    monkeypatch.setattr(checks, "_keys", lambda *_: sorted(path.name for path in folder.iterdir()))
    return folder


def check() -> dg.AssetCheckResult:
    found = checks.calibration_set_represents_production(dg.build_asset_check_context())
    assert isinstance(found, dg.AssetCheckResult)
    return found


def write(sets: Path, name: str, content: dict[str, Any]) -> None:
    (sets / name).mkdir(parents=True)
    write_json(sets / name / "representativeness.json", content)


def test_a_set_that_is_like_random_draws_passes_and_says_so(sets: Path) -> None:
    write(sets, "random-64", result(tuning=block({}, 0.41)))
    found = check()
    assert found.passed
    assert found.description == "random-64: no farther from production than random draws of its size (p = 0.41)"


def test_a_set_that_is_not_warns_with_what_is_wrong_in_it(sets: Path) -> None:
    write(
        sets, "cut", result(tuning=block({"length": "7.0% of tokens sit in longer samples.", "b": "And more."}, 0.0025))
    )
    write(sets, "fair", result(tuning=block({}, 0.9)))
    found = check()
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.description is not None
    assert found.description.startswith("cut: 7.0% of tokens sit in longer samples. And more.; fair: no farther")


def test_the_production_sample_decides_where_there_is_one(sets: Path) -> None:
    write(sets, "mine", result(production=block({}, 0.5), tuning=block({"length": "Too short."}, 0.01)))
    assert check().passed


def test_without_anything_to_compare_with_the_reason_is_given(sets: Path) -> None:
    nothing = {"samples": 3, "primary": None, "references": {}, "sentences": ["not measured: tuning is empty"]}
    write(sets, "mine", nothing)
    found = check()
    assert found.passed
    assert found.description == "mine: not measured: tuning is empty"


def test_the_check_blocks_nothing() -> None:
    [spec] = checks.calibration_set_represents_production.check_specs
    assert not spec.blocking
    assert checks.calibration_set_represents_production in checks.CHECKS


def test_the_gates_of_a_promotion_are_shown_with_their_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_folder", lambda asset: tmp_path / asset)
    gates = [
        {"name": name, "passed": name != "not_withdrawn", "sentence": f"{name}.", "found": found, "limit": 0}
        for name, found in zip(checks.GATES, ({"high": 0.1}, "abc", {"exact": 0}, 0, None, "Ada: no"), strict=True)
    ]
    (tmp_path / "deployed_model").mkdir()
    write_json(tmp_path / "deployed_model/promotion.json", {"pair": "p", "decision": "rejected", "checks": gates})
    for check, gate in zip(checks.GATE_CHECKS, gates, strict=True):
        found = check()
        assert isinstance(found, dg.AssetCheckResult)
        assert (found.passed, found.description) == (gate["passed"], gate["sentence"])
        assert found.metadata["decision"].value == "rejected" and found.metadata["limit"].value == 0


def test_files_of_the_inbox_that_are_held_back_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams

    monkeypatch.setattr(checks, "_folder", lambda asset: tmp_path / asset)
    (tmp_path / "inbox").mkdir(), (tmp_path / "raw_corpus").mkdir(), (tmp_path / "before").mkdir()
    (tmp_path / "inbox/good.txt").write_text("a text")
    build_raw_corpus(CorpusParams(sources={}), tmp_path, tmp_path / "before")
    (tmp_path / "inbox/bad.jsonl").write_text("{}\n")
    build_raw_corpus(CorpusParams(sources={}), tmp_path, tmp_path / "raw_corpus")
    found = checks.no_file_of_the_inbox_is_held_back()
    assert isinstance(found, dg.AssetCheckResult) and not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert (found.description or "").startswith("inbox/bad.jsonl row 0: wrong_type: no field 'text'")
    (tmp_path / "raw_corpus").rename(tmp_path / "after"), (tmp_path / "before").rename(tmp_path / "raw_corpus")
    found = checks.no_file_of_the_inbox_is_held_back()
    assert isinstance(found, dg.AssetCheckResult) and found.passed and found.description == "none of 1 files"
