from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.calibration_choice.build import build_calibration_choice
from plumbline.calibration_choice.params import ChoiceParams
from plumbline.calibration_choice.summary import summary as summary_of


def build(out: Path, overrides: dict[str, Any] | None = None, **entry: Any) -> dict[str, Any]:
    build_calibration_choice("mine", {**entry, **(overrides or {})}, out)
    return summary_of(out)


def test_every_default_is_written_out(tmp_path: Path) -> None:
    build(tmp_path, strategy="length_stratified", n=8)
    assert json.loads((tmp_path / "choice.json").read_text()) == {
        "name": "mine",
        "strategy": "length_stratified",
        "n": 8,
        "seed": 0,
        "domains": None,
        "allow_fewer": False,
        "buckets": [64, 128, 256, 512, 1024, 2048],
        "quotas": "proportional",
    }


def test_overrides_win_and_none_brings_the_default_back(tmp_path: Path) -> None:
    entry = {"strategy": "length_stratified", "n": 8, "quotas": "equal"}
    assert build(tmp_path, {"n": 16, "seed": 7}, **entry)["n"] == 16
    assert json.loads((tmp_path / "choice.json").read_text())["seed"] == 7
    assert build(tmp_path, {"quotas": None}, **entry)["quotas"] == "proportional"
    assert build(tmp_path, {"strategy": "random", "quotas": None}, **entry)["strategy"] == "random"


def test_the_same_choice_written_differently_is_the_same_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    build(one, strategy="random", n=4, domains=["prose", "code"], seed=0)
    build(other, {"n": "4"}, strategy="random", domains=["code", "prose", "code"], n=9)
    assert (one / "choice.json").read_bytes() == (other / "choice.json").read_bytes()


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (
            {"strategy": "length_stratified", "quota": "equal"},
            "no option `quota`; did you mean `quotas`.*buckets, quotas",
        ),
        ({"strategy": "random", "quotas": "equal"}, "strategy random has no option `quotas`.*no options of its own"),
        ({"strategy": "random", "sede": 1}, "did you mean `seed`"),
        ({"strategy": "length_stratified", "quotas": "even"}, "quotas: .*'proportional' or 'equal', found 'even'"),
        ({"strategy": "length_stratified", "buckets": [128, 64]}, "buckets: .*must ascend"),
        ({"strategy": "length_stratified", "buckets": []}, "buckets: .*at least 1 item"),
        ({"strategy": "stratified"}, "no strategy is called `stratified`; did you mean `length_stratified`"),
    ],
)
def test_mistakes_name_the_entry_and_the_way_out(tmp_path: Path, entry: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"params.yaml, calibrations: mine: .*{complaint}"):
        build(tmp_path, n=4, **entry)
    assert not list(tmp_path.iterdir())


def test_a_bad_override_is_refused_as_the_entry_would_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n: Input should be greater than 0, found 0"):
        build(tmp_path, {"n": 0}, strategy="random", n=4)


@pytest.mark.parametrize("entry", [{"n": 0}, {"n": 4, "seed": -1}, {"n": 4, "domains": []}])
def test_impossible_entries(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChoiceParams.model_validate({"strategy": "random", **entry})
