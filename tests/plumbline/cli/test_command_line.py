"""What is true of every command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from plumbline import distribution
from plumbline.cli.main import main
from plumbline.cli.sections import OF_STAGES, SECTIONS, WIDTH, Sections
from plumbline.cli.status import by_asset


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example_that_it_understands(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/quantized_model/random-64-w4a16-gptq").mkdir(parents=True)
    (tmp_path / "key.pem").touch()
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(main, [command, "--help"], terminal_width=1000)
    assert told.exit_code == 0
    lines = told.output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("Example: "))
    shown = "\n".join(lines[first : lines.index("Options:")]).replace("Example:", "")
    parts = [shlex.split(part) for part in re.split(r"\n|&&|\|\|", shown)]
    mine = [part[2:] for part in parts if part[:2] == ["plumbline", command]]
    assert mine, shown
    for arguments in mine:
        main.commands[command].make_context(command, arguments)  # raises at an option or argument that is not there


def test_the_list_of_commands_is_whole_uncut_and_a_screen() -> None:
    text = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    listed = [name for commands in SECTIONS.values() for name in commands]
    assert sorted([*listed, *OF_STAGES]) == sorted(main.commands)  # each once
    lines = text.splitlines()
    assert len(lines) <= 49 and max(map(len, lines)) <= 83 and "..." not in "".join(lines[1:]) and "Others" not in text
    for commands in SECTIONS.values():
        for name, summary in commands.items():
            assert len(summary) <= WIDTH and f"  {name:19}{summary}" in lines


def test_a_command_that_no_section_names_is_listed() -> None:
    group = Sections("g", commands={"run": click.Command("run"), "new": click.Command("new", help="Do new things.")})
    text = CliRunner().invoke(group, ["--help"]).output
    assert "Others\n  new                Do new things." in text


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"plumbline {distribution.version()}\n"


def test_a_fresh_workspace_is_a_screen_and_nothing_in_it_is_corrupted(tmp_path: Path) -> None:
    root = tmp_path / "w"
    CliRunner().invoke(main, ["init", str(root)])
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    status = CliRunner().invoke(main, ["status"], env=environment)
    assert status.exit_code == 1 and len(status.output.splitlines()) <= 14
    assert "evaluation: never run (16: random-64-w8a8-minmax, … clusters-64-w3a16-gptq)" in status.output
    full = CliRunner().invoke(main, ["status", "--all"], env=environment)
    assert "evaluation@random-64-w8a8-minmax\n    never run\n" in full.output
    verify = CliRunner().invoke(main, ["verify"], env=environment)
    assert verify.exit_code == 1 and "nothing could be verified" in verify.output and "corrupted" not in verify.output


def test_status_shows_the_first_reasons_and_groups_and_how_many_more() -> None:
    changed = {"calibration_report": list("abcde")} | {f"evaluation@{i}": [f"reason {i // 2}"] for i in range(10)}
    assert list(by_asset(changed)) == [
        "calibration_report: a; b; c; 2 more reasons",
        "evaluation: reason 0 (2: 0, … 1)",
        "evaluation: reason 1 (2: 2, … 3)",
        "evaluation: reason 2 (2: 4, … 5)",
        "evaluation: … 2 more (plumbline status --all)",
    ]
