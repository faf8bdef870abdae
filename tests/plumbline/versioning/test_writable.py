"""Where a run cannot work is known before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from plumbline.cli.main import main
from plumbline.graph.preflight import NotReady
from plumbline.graph.run import run_graph
from plumbline.versioning.config import new_project
from plumbline.versioning.writable import awkward, unwritable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    new_project(root)
    for name in (".plumbline/locks", ".dvc/cache/files/md5/6b", ".dvc/cache/runs/27/27ab"):
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("", "workspace cannot be written: it is read-only"),
        (".plumbline/locks", ".plumbline/locks cannot be written"),
        (".dvc/cache/files/md5", "DVC's cache cannot be written (.*md5 is read-only"),
        (".dvc/cache/files/md5/6b", "DVC's cache cannot be written (.*6b is read-only"),
        (".dvc/cache/runs/27", "DVC's cache cannot be written (.*27 is read-only"),
        (".dvc/cache/runs/27/27ab", "dvc cache dir --local FOLDER"),
    ],
)
def test_a_closed_folder_is_named(closed: str, said: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(unwritable(root)) == []
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root / closed and access(path, mode))
    [problem] = unwritable(root)
    words = said.split(".*")
    assert all(word in problem for word in words), problem
    (root / "params.yaml").touch()
    with pytest.raises(NotReady) as refused:
        run_graph(root)
    assert str(refused.value) == problem


@pytest.mark.parametrize("character", "{}[]*?")
def test_a_path_that_dvc_or_dagster_take_for_a_pattern_is_refused(character: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{character}b"
    assert awkward(path).startswith(f"{path} has {character} in its path")
    result = CliRunner().invoke(main, ["init", str(path)])
    assert result.exit_code == 1 and "move it to another path" in result.output and not path.exists()
    assert list(unwritable(path)) == [awkward(path)]


@pytest.mark.parametrize("name", ["a b", "Größe", "模型", "it's $x & (y)", "#1, 50 %"])
def test_spaces_and_letters_of_any_alphabet_are_fine(name: str) -> None:
    assert awkward(Path("/home") / name) == ""
