"""Where DVC keeps its objects is asked of DVC, and what we set goes through DVC."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.config import Config

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.config import new_project, require_git_or_no_scm
from plumbline.versioning.pipeline import Pipeline


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    new_project(tmp_path / "workspace")
    return tmp_path / "workspace"


def config(root: Path) -> Config:
    return Config(str(root / ".dvc"))


def test_a_new_project_needs_no_git_and_links_its_files(root: Path, tmp_path: Path) -> None:
    assert config(root)["core"]["no_scm"] is True
    assert config(root)["cache"]["type"] == ["reflink", "hardlink", "copy"]
    assert cache_folder(root) == root / ".dvc/cache/files/md5"
    (tmp_path / "second").mkdir()
    new_project(tmp_path / "second", root / ".dvc/cache")
    assert cache_folder(tmp_path / "second") == root / ".dvc/cache/files/md5"


def test_the_cache_is_where_the_settings_of_the_user_put_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "of-user"))
    with config(root).edit("global") as settings:
        settings["cache"]["dir"] = str(tmp_path / "shared")
    assert cache_folder(root) == tmp_path / "shared/files/md5"
    with config(root).edit("local") as settings:
        settings["cache"]["dir"] = str(tmp_path / "mine")
    assert cache_folder(root) == tmp_path / "mine/files/md5"


def test_settings_that_dvc_cannot_read_are_named(root: Path) -> None:
    (root / ".dvc/config").write_text("[core\n")
    with pytest.raises(ValueError, match=r"correct \.dvc/config"):
        cache_folder(root)


def test_a_folder_that_is_no_project_has_no_objects(tmp_path: Path) -> None:
    assert not cache_folder(tmp_path).exists()


@pytest.mark.parametrize("git", ["none", "here", "above"])
def test_dvc_is_told_where_there_is_no_git(git: str, root: Path, tmp_path: Path) -> None:
    with config(root).edit("repo") as settings:
        del settings["core"]["no_scm"]
    with config(root).edit("local") as settings:
        settings["remote"] = {"store": {"url": "/store"}}
        settings["core"] = {"remote": "store"}  # a second section of this name would make the file unreadable
    if git != "none":
        subprocess.run(["git", "init", "-q", root if git == "here" else tmp_path], check=True)
    require_git_or_no_scm(root)
    assert bool(config(root)["core"].get("no_scm")) is (git == "none")
    assert config(root)["remote"]["store"]["url"] == "/store" and config(root)["core"]["remote"] == "store"
    assert (root / ".dvc/config.local").read_text().count("[core]") == 1
    before = (root / ".dvc/config.local").stat().st_mtime_ns
    require_git_or_no_scm(root)
    assert (root / ".dvc/config.local").stat().st_mtime_ns == before
    if git != "above":  # DVC wants `dvc init --subdir` there
        assert Pipeline(root).stages == {}


def test_nothing_needs_dvc_until_it_is_asked_for() -> None:
    names = "cache cache_users code config digest digest_memo garbage lock object_store pipeline recording scratch"
    modules = ", ".join(names.split())
    script = (
        f"import sys\nfrom plumbline.versioning import {modules}, run_history, status, verify\n"
        "print([name for name in ('dvc', 'dvc_data', 'torch', 'numpy', 'pyarrow', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
