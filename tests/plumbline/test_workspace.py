"""Which workspace the commands act in, and what they say where there is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from plumbline.cli.main import ANYWHERE, main
from plumbline.workspace import NoWorkspace, workspace_root

PROJECT = Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "affected": ["a"],
    "audit": ["a"],
    "diff": ["a", "b"],
    "export": ["a", "b", "--to", "imatrix"],
    "promote": ["a", "--why", "b"],
    "rollback": ["--why", "a"],
    "sign": ["a", "--key", "key.pem"],
    "update-statistics": ["a", "b", "out"],
    "tasks": [".", "--task", "a"],
    "materialize": ["raw_corpus"],
}
"""What a command cannot be called without."""
OUTSIDE = "is not in a Plumbline workspace"


def make_workspace(root: Path, scheme: str = "w4") -> Path:
    """A folder with the marks of a workspace, and one scheme more than the shipped params.yaml has."""
    root.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    params["schemes"][scheme] = {"method": "rtn", "weight_bits": 4}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return root


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no PLUMBLINE_ROOT; what `-C` sets is taken back at the end."""
    monkeypatch.setenv("PLUMBLINE_ROOT", "")
    here = tmp_path / "nowhere"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    ("standing", "named", "expected"),
    [
        ("a", None, "a"),
        ("a/deep/down", None, "a"),
        ("a/inner", None, "a/inner"),  # the nearest one
        ("a/inner/deep", None, "a/inner"),
        ("a", "b", "b"),
        ("nowhere", "b", "b"),
        ("a", "../b", "b"),  # relative to the current folder
        ("b/params-only", None, "b"),  # dvc.yaml is missing there
        ("nowhere", None, None),
        ("a", "nowhere", None),  # a variable that names no workspace is not passed over
        ("a", "b/deep", None),
        ("a", "gone", None),
    ],
)
def test_the_root_is_the_named_one_or_the_nearest_upward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standing: str, named: str | None, expected: str | None
) -> None:
    for root in ("a", "a/inner", "b"):
        make_workspace(tmp_path / root)
    for folder in ("a/deep/down", "a/inner/deep", "b/deep", "b/params-only"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "b/params-only/params.yaml").touch()
    monkeypatch.chdir(tmp_path / standing)
    if named is not None:
        monkeypatch.setenv("PLUMBLINE_ROOT", named if named.startswith("..") else str(tmp_path / named))
    if expected is None:
        with pytest.raises(NoWorkspace):
            workspace_root()
    else:
        assert workspace_root() == tmp_path / expected


@pytest.mark.parametrize("command", sorted(set(main.commands) - set(ANYWHERE)))
def test_outside_of_a_workspace_a_command_says_so_and_exits_with_2(command: str, nowhere: Path) -> None:
    (nowhere / "key.pem").touch()
    result = run(command, *ARGUMENTS.get(command, []))
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ") and OUTSIDE in result.output and len(result.output.splitlines()) == 1
    assert sorted(path.name for path in nowhere.iterdir()) == ["key.pem"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["strategies"], ["run", "--help"], ["init", "new"]])
def test_what_needs_no_workspace_works_anywhere(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output


def test_another_workspace_is_named_by_option_and_said_on_stderr(tmp_path: Path, nowhere: Path) -> None:
    a, b = make_workspace(tmp_path / "a", "w4-of-a"), make_workspace(tmp_path / "b", "w4-of-b")
    for root, scheme in ((a, "w4-of-a"), (b, "w4-of-b")):
        result = run("-C", str(root), "schemes")
        assert result.exit_code == 0 and scheme in result.stdout and "workspace:" not in result.stdout
        assert result.stderr == f"workspace: {root}\n"
    (b / "deep").mkdir()
    assert "w4-of-b" in run("-C", "../b/deep", "schemes").stdout
    result = run("-C", str(nowhere), "schemes")
    assert result.exit_code == 2 and OUTSIDE in result.output and len(result.output.splitlines()) == 1
    assert run("-C", "gone", "schemes").exit_code == 2


def test_the_workspace_goes_unsaid_where_one_stands_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_workspace(tmp_path / "a"))
    assert run("schemes").stderr == ""
    (tmp_path / "a/deep").mkdir()
    monkeypatch.chdir(tmp_path / "a/deep")
    assert run("schemes").stderr == f"workspace: {tmp_path / 'a'}\n"


def test_a_relative_variable_is_made_absolute_for_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_workspace(tmp_path / "a")
    monkeypatch.setenv("PLUMBLINE_ROOT", "../a")
    assert run("schemes").exit_code == 0
    assert os.environ["PLUMBLINE_ROOT"] == str(root)


def test_a_worktree_of_git_is_a_workspace_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main_tree = make_workspace(tmp_path / "main", "w4-of-main")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"], ["worktree", "add", "-q", "../other"]):
        subprocess.run([*git, *command], cwd=main_tree, check=True)
    other = make_workspace(tmp_path / "other", "w4-of-other")
    assert (other / ".git").is_file()
    monkeypatch.chdir(other)
    result = run("schemes")
    assert result.exit_code == 0 and "w4-of-other" in result.stdout and "w4-of-main" not in result.stdout
