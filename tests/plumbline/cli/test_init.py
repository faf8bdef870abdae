"""`plumbline init`: a workspace in an empty folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from plumbline.cli.main import main
from plumbline.params import load_params
from plumbline.raw_corpus.intake import INTAKE, read_intake
from plumbline.requested import requested
from plumbline.workspace import is_workspace
from plumbline.workspace_template import FOLDER, files_of, template_root

PROJECT = Path(__file__).resolve().parents[3]


def init(folder: Path) -> Result:
    return CliRunner().invoke(main, ["init", str(folder)])


def test_it_writes_the_files_of_the_repository_and_its_own(tmp_path: Path) -> None:
    root = tmp_path / "My texts"
    result = init(root)
    assert result.exit_code == 0, result.output
    assert is_workspace(root) and template_root() == PROJECT
    copied = files_of(PROJECT)
    assert all((root / name).read_bytes() == (PROJECT / name).read_bytes() for name in copied)
    for name in ("assets/raw_corpus.py", "orchestration/definitions.py", ".dvc/config", ".dagster/dagster.yaml"):
        assert name in copied
    written = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    # without git, which .dvc/config.local tells DVC
    assert written == {*copied, "README.md", "pyproject.toml", "intake.yaml", "requested.yaml", ".dvc/config.local"}
    assert (
        list(load_params(root).grid.calibrations)
        == yaml.safe_load((PROJECT / "params.yaml").read_text())["grid"]["calibrations"]
    )
    assert requested(root) == [] and not read_intake(root / INTAKE).files
    assert f"cd '{root}'" in result.output and "plumbline run" in result.output


def test_pyproject_names_the_folder_and_the_distribution(tmp_path: Path) -> None:
    init(tmp_path / "My texts")
    settings = tomllib.loads((tmp_path / "My texts/pyproject.toml").read_text())
    assert settings["tool"]["dagster"] == {
        "module_name": "orchestration.definitions",
        "code_location_name": "My-texts",
    }
    assert settings["project"]["name"] == "my-texts-workspace"
    assert settings["project"]["dependencies"][0].startswith("plumbline-ptq>=")
    readme = (tmp_path / "My texts/README.md").read_text()
    assert readme.startswith("# My-texts\n") and "$" not in readme
    assert len(readme.splitlines()) <= 66 and max(map(len, readme.splitlines())) <= 125


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = init(tmp_path)
    assert result.exit_code == 1 and "is not empty (notes.txt)" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_new_git_repository_becomes_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "."])
    assert result.exit_code == 0 and is_workspace(tmp_path)
    assert "git init" not in result.output and "cd " not in result.output


def test_files_that_the_package_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no assets/\*.py"):
        files_of(tmp_path)
    assert not (PROJECT / "plumbline" / FOLDER).exists()  # made at build time alone
