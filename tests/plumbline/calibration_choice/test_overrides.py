"""Launch-time overrides: what is given wins, and another strategy does not inherit the options of the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plumbline.calibration_choice.build import build_calibration_choice
from plumbline.calibration_choice.choice import overrides, require_launch
from plumbline.calibration_choice.params import ChoiceParams
from plumbline.calibration_choice.summary import summary as summary_of

STRATIFIED = ChoiceParams.model_validate({"strategy": "length_stratified", "n": 8, "seed": 3, "quotas": "equal"})


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({}, {}),
        ({"n": 5, "seed": 0}, {"n": 5, "seed": 0}),
        ({"options": {"quotas": "proportional"}}, {"quotas": "proportional"}),
        ({"strategy": "length_stratified"}, {"strategy": "length_stratified"}),
        ({"strategy": "random"}, {"strategy": "random", "quotas": None}),
    ],
)
def test_what_is_given_wins(given: dict[str, Any], changes: dict[str, Any]) -> None:
    assert overrides(STRATIFIED, **given) == changes


def test_another_strategy_is_recorded_whole(tmp_path: Path) -> None:
    entry = {**STRATIFIED.model_dump(), **overrides(STRATIFIED, strategy="random", n=4)}
    build_calibration_choice("a", entry, tmp_path)
    choice = summary_of(tmp_path)
    assert (choice["strategy"], choice["n"], choice["seed"]) == ("random", 4, 3)
    assert "quotas" not in choice


@pytest.mark.parametrize(
    ("given", "complaint"),
    [({"n": -5}, "n: "), ({"strategy": "nonsense"}, "nonsense"), ({"options": {"colour": 1}}, "no option `colour`")],
)
def test_a_wrong_value_of_a_launch_blames_the_launch(given: dict[str, Any], complaint: str) -> None:
    entry = ChoiceParams.model_validate({"strategy": "random", "n": 8, "seed": 0})
    changed = overrides(entry, **given)
    with pytest.raises(ValueError) as refused:
        require_launch("random-8", entry, changed)
    message = str(refused.value)
    assert message.startswith("the launch of calibration_choice random-8 with {") and complaint in message
    assert "params.yaml" not in message


def test_a_right_launch_and_none_at_all_pass() -> None:
    entry = ChoiceParams.model_validate({"strategy": "length_stratified", "n": 8, "quotas": "proportional"})
    require_launch("a", entry, {})
    require_launch("a", entry, overrides(entry, strategy="random", n=4))
