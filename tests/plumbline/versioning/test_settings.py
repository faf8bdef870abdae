"""DVC's configuration as we read it, against DVC's own reading."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.config import Config
from dvc.repo import Repo

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.config import REMOTE, new_project, remote_conflict, use_remote
from plumbline.versioning.remote import default_remote
from plumbline.versioning.settings import UnreadableConfig, settings

WRITTEN = {
    "plain": "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/prefix\n    endpointurl = http://h:9000\n",
    "relative url": "[core]\nremote = store\n['remote \"store\"']\nurl = ../store\n",
    "case": "[Core]\nRemote = STORE\n['remote \"Store\"']\nURL = s3://store\nEndpointUrl = http://h\n",
    "comments": "# all\n[core] # of it\n  remote = store # mine\n\n['remote \"store\"']\n  url = '/a # b'  # c\n",
    "quoted": '[core]\n    remote = "store"\n[\'remote "store"\']\n    url = "/with space, and comma"\n',
    "equals": "[core]\nremote = store\n['remote \"store\"']\nurl = s3://b/p=1\n",
    "home": "[core]\nremote = store\n['remote \"store\"']\nurl = ~/store\n[cache]\ndir = ~/cache\n",
    "relative": '[cache]\n    dir = ../../shared\n    type = "reflink,hardlink,copy"\n',
    "lists": "[cache]\n    type = reflink, hardlink, copy\n    dir = /cache\n",
    "cache of a name": "[cache]\n    local = disk\n['remote \"disk\"']\n    url = /disk\n",
    "nothing": "",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"DVC_{name}_CONFIG_DIR", str(tmp_path / name))
    (tmp_path / "workspace").mkdir()
    new_project(tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.mark.parametrize("level", ["SYSTEM", "GLOBAL", "repo", "local"])
@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_every_spelling_is_read_as_dvc_reads_it(text: str, level: str, root: Path) -> None:
    files = {"repo": root / ".dvc/config", "local": root / ".dvc/config.local"}
    path = files.get(level, root.parent / level / "config")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    ours, dvcs = default_remote(root), Config(str(root / ".dvc"))
    name = dvcs["core"].get("remote")
    if name is None:
        assert ours is None
    else:
        section = dvcs["remote"][name]
        assert ours is not None and (ours.name, ours.url) == (name, section["url"])
        assert ours.options.get("endpointurl") == section.get("endpointurl")
    with Repo(str(root), config={"core": {"no_scm": True}}) as repo:
        assert cache_folder(root) == Path(repo.cache.local.path)


def test_a_later_file_wins_key_by_key(root: Path) -> None:
    (root / ".dvc/config").write_text("[core]\nremote = a\n['remote \"a\"']\nurl = /a\nregion = x\n")
    (root / ".dvc/config.local").write_text("['remote \"a\"']\nregion = y\n")
    remote = default_remote(root)
    assert remote is not None and (remote.url, remote.options) == ("/a", {"region": "y"})


@pytest.mark.parametrize("text", ["[core\n", "remote = a\n", "[core]\nremote\n", b"\xff"])
def test_what_cannot_be_read_is_named_with_its_line(text: str | bytes, root: Path) -> None:
    (root / ".dvc/config").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnreadableConfig, match=r"correct \.dvc/config"):
        settings(root)


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "/store", "../store", "gs://b"])
def test_the_remote_of_params_yaml_becomes_dvcs_default(url: str, root: Path) -> None:
    assert use_remote(root, url) and not use_remote(root, url)
    config = Config(str(root / ".dvc"))
    expected = url if "://" in url else str((root / url).resolve())
    assert config["core"]["remote"] == REMOTE and config["remote"][REMOTE]["url"] == expected
    assert not (root / ".dvc/config.local").exists()
    assert use_remote(root, "s3://other/place")
    remote = default_remote(root)
    assert remote is not None and remote.url == "s3://other/place"


def test_a_remote_that_somebody_named_is_left_alone(root: Path) -> None:
    with Config(str(root / ".dvc")).edit("local") as config:
        config["core"]["remote"], config["remote"] = "mine", {"mine": {"url": "/mine"}}
    assert not use_remote(root, "s3://bucket") and "DVC's default remote 'mine' is /mine" in remote_conflict(
        root, "s3://bucket"
    )
    assert not use_remote(root, "/mine") and remote_conflict(root, "/mine") == ""  # the same place under another name
