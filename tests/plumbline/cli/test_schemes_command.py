"""`plumbline schemes`: what is in params.yaml, and every part that a scheme can have."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from plumbline.cli.main import main
from plumbline.cli.scheme_list import PARTS, WIDTH
from plumbline.quantized_model.params import SchemeParams
from tests.helpers.paths import PROJECT

SHIPPED = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["schemes", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_scheme_and_every_part_has_a_line_on_one_screen() -> None:
    lines = printed().splitlines()
    names = list(SHIPPED["schemes"])
    assert [line.split()[0] for line in lines[: len(names)]] == names
    starred = [name for name, line in zip(names, lines, strict=False) if line[len(name) :].startswith(" *")]
    assert starred == SHIPPED["grid"]["schemes"]
    assert max(map(len, lines)) <= WIDTH and len(lines) <= 64
    for part in PARTS:
        assert any(line.startswith(part + " ") for line in lines)


def test_the_parts_are_the_fields_of_a_scheme() -> None:
    fields = set(SchemeParams.model_fields)
    assert set(PARTS) == fields - {"percentile", "smoothing", "mixed"}
    for told_beside_another in ("percentile:", "smoothing:", "mixed:"):
        assert any(told_beside_another in line for line in PARTS.values())


@pytest.mark.parametrize("name", SHIPPED["schemes"])
def test_a_scheme_in_full_is_an_entry_of_params(name: str) -> None:
    head, _, said = printed(name).partition("\n\n")
    entry = yaml.safe_load(head)
    assert SchemeParams.model_validate(SHIPPED["schemes"][name]).model_dump(mode="json") == entry[name]
    assert said.strip().endswith((".", ")"))


def test_an_unknown_scheme_is_answered_with_those_that_are_there() -> None:
    result = CliRunner().invoke(main, ["schemes", "w1a1"])
    assert result.exit_code == 1 and "no scheme 'w1a1' in params.yaml; there: w8a8-minmax" in result.output


def test_it_does_not_wait_for_torch() -> None:
    code = "import sys, plumbline.cli.scheme_list; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
