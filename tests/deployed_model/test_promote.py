"""The champion is the choice with the lowest KL under the deployed scheme, and the record says what it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assets.artifact import sha256_file
from assets.deployed_model.promote import FIGURES, build_promotion, choose_champion

KL = {"random": {"w4": 0.03, "w3": 0.10}, "stratified": {"w4": 0.02, "w3": 0.20}, "prose": {"w4": 0.04, "w3": 0.30}}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for choice, schemes in KL.items():
        for scheme, kl in schemes.items():
            folder = tmp_path / "evaluation" / f"{choice}-{scheme}"
            folder.mkdir(parents=True)
            row: dict[str, Any] = dict.fromkeys(FIGURES, 1.0) | {"kl_mean": kl}
            row |= {"weights": {"model.safetensors": f"sha-{choice}-{scheme}"}, "base_model": "b", "fingerprint": "f"}
            (folder / "metrics.json").write_text(json.dumps(row))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("<html>")
    (tmp_path / "report" / "verdict.json").write_text(json.dumps({"sentences": ["w4: yes", "w3: no"]}))
    return tmp_path


def promote(study: Path, scheme: str, name: str = "out") -> dict[str, Any]:
    out = study / name
    out.mkdir()
    build_promotion(scheme, list(KL), study / "evaluation", study / "report", out)
    return dict(json.loads((out / "promotion.json").read_text()))


@pytest.mark.parametrize(("scheme", "champion"), [("w4", "stratified"), ("w3", "random")])
def test_the_lowest_kl_under_the_scheme_wins(study: Path, scheme: str, champion: str) -> None:
    record = promote(study, scheme)
    assert record["pair"] == f"{champion}-{scheme}"
    assert record["weights"] == {"model.safetensors": f"sha-{champion}-{scheme}"}
    assert record["candidates"] == {choice: row[scheme] for choice, row in KL.items()}
    assert record["verdict"] == [f"{scheme}: " + ("yes" if scheme == "w4" else "no")]
    assert record["report_sha256"] == sha256_file(study / "report" / "report.html")


def test_the_same_study_gives_the_same_bytes(study: Path) -> None:
    promote(study, "w4", "one"), promote(study, "w4", "two")
    assert (study / "one/promotion.json").read_bytes() == (study / "two/promotion.json").read_bytes()


def test_among_equals_the_first_named_wins() -> None:
    assert choose_champion({"b": {"kl_mean": 1.0}, "a": {"kl_mean": 1.0}}) == "b"


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"grid\.calibrations"):
        choose_champion({})


def test_a_choice_that_was_not_evaluated_is_an_error(study: Path) -> None:
    with pytest.raises(FileNotFoundError):
        promote(study, "w2")
