from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner

from plumbline.calibration_choice.choice import resolve
from plumbline.calibration_set.strategies import BUILT_IN, names
from plumbline.cli.main import main


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["strategies", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_strategy_has_a_line_that_fits_a_screen() -> None:
    lines = printed().splitlines()
    assert [line.split()[0] for line in lines[: len(names())]] == names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 and len(line) < 140 for line in lines[: len(names())])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_what_is_printed_of_a_strategy_is_an_entry_of_params_and_what_a_reader_needs(name: str) -> None:
    head, _, said = printed(name).partition("\n\n")
    ((choice, entry),) = yaml.safe_load(head).items()
    assert resolve(choice, {key: value for key, value in entry.items() if value is not None})["strategy"] == name
    assert all(part in said for part in ("Optimises: ", "Cost: ", "Source: "))


def test_an_unknown_strategy_is_answered_with_the_closest() -> None:
    result = CliRunner().invoke(main, ["strategies", "hotflip"])
    assert result.exit_code == 1 and "did you mean `hot_flip`" in result.output
