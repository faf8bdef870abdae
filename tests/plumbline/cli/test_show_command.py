"""`plumbline show`: what the terminal says of a set fits the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from plumbline.cli.main import main
from tests.helpers.shown_set import write_workspace


@pytest.fixture(scope="module")
def shown_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("show") / "workspace")


def show(root: Path, *arguments: str, lines: int = 24, columns: int = 80) -> Result:
    size = {"LINES": str(lines), "COLUMNS": str(columns)}
    return CliRunner().invoke(main, ["show", *arguments], env={"PLUMBLINE_ROOT": str(root), **size})


@pytest.mark.parametrize(("lines", "columns"), [(24, 80), (40, 120), (60, 60)])
@pytest.mark.parametrize("more", [(), ("--against", "first-9"), ("--no-texts",)])
def test_a_set_fits_the_screen(shown_workspace: Path, lines: int, columns: int, more: tuple[str, ...]) -> None:
    result = show(shown_workspace, "random-12", *more, lines=lines, columns=columns)
    assert result.exit_code == 0, result.output
    printed = result.stdout.splitlines()
    assert len(printed) <= lines and max(map(len, printed)) <= columns
    assert "random-12" in printed[0]


def test_all_lists_every_sample_and_one_can_be_read_in_full(shown_workspace: Path) -> None:
    few, every = show(shown_workspace, "random-12").stdout, show(shown_workspace, "random-12", "--all").stdout
    numbers = [line.split()[0] for line in every.splitlines() if " tokens  own/" in line]
    assert numbers == [str(number) for number in range(12)]
    assert "more: --all" in few and "more: --all" not in every
    sample_id = every.splitlines()[5].split()[1]
    whole = show(shown_workspace, "random-12", "--sample", "1").stdout
    assert whole == show(shown_workspace, "random-12", "--sample", sample_id).stdout
    assert "[assistant]" in whole and "own/talk/chats.jsonl row" in whole
    for wanted in ("99", "zz"):
        result = show(shown_workspace, "random-12", "--sample", wanted)
        assert result.exit_code == 1 and "give 0 to 11" in result.output


def test_an_escape_sequence_in_a_text_does_not_reach_the_terminal(tmp_path: Path) -> None:
    from plumbline.cli.show import _cut

    assert _cut("a\x1b[2Jb\u202e") == "a?[2Jb?"


def test_params_decide_whether_texts_are_shown(shown_workspace: Path) -> None:
    path = shown_workspace / "params.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(yaml.safe_dump({**yaml.safe_load(before), "pages": {"texts": False}}), encoding="utf-8")
    try:
        hidden, asked = show(shown_workspace, "random-12"), show(shown_workspace, "random-12", "--texts")
    finally:
        path.write_text(before, encoding="utf-8")
    assert "<s>Page" not in hidden.output and "Texts are left out" in hidden.output
    assert "<s>Page" in asked.output


def test_pages_are_written_where_asked(shown_workspace: Path, tmp_path: Path) -> None:
    for arguments in (["random-12"], ["random-12", "--against", "first-9"], ["--rejected"]):
        page = tmp_path / "new" / f"{len(arguments)}.html"
        result = show(shown_workspace, *arguments, "--page", str(page))
        assert result.exit_code == 0 and page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_rejections_in_the_terminal(shown_workspace: Path) -> None:
    output = show(shown_workspace, "--rejected").stdout
    assert output.startswith("2 rows rejected, 27 documents accepted")
    assert "own/talk/chats.jsonl row 1: wrong_type: expected an object" in output
    assert "expected an object" not in show(shown_workspace, "--rejected", "--no-texts").output


def test_usage_errors_say_what_there_is(shown_workspace: Path) -> None:
    nothing = show(shown_workspace)
    assert nothing.exit_code == 2 and "first-9, random-12" in nothing.output
    unknown = show(shown_workspace, "random-13")
    assert unknown.exit_code == 1 and "there: first-9, random-12" in unknown.output
    assert show(shown_workspace, "random-12", "--rejected").exit_code == 2
