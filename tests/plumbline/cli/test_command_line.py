"""What is true of every command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from plumbline.cli.main import main


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
