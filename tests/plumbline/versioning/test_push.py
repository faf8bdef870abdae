"""What is pushed suffices for the models that the registry names, also for those that dvc.lock no longer does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.config import new_project, use_remote
from plumbline.versioning.digest import dvc_digest, listing
from plumbline.versioning.garbage import collect
from plumbline.versioning.object_store import Store
from plumbline.versioning.push import push


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    new_project(tmp_path / "workspace")
    return tmp_path / "workspace"


def store(root: Path, files: dict[str, bytes]) -> str:
    """Put a folder into the cache, as a step of long ago did; returns its hash."""
    folder = root / "made"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = {name: dvc_digest(folder / name) for name in files}
    md5 = dvc_digest(folder)
    for name, file_md5 in names.items():
        place = root / ".dvc/cache/files/md5" / file_md5[:2] / file_md5[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, place)
    place = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(listing(names))
    shutil.rmtree(folder)
    return md5


def test_an_older_champion_is_pushed_with_its_files(root: Path, tmp_path: Path) -> None:
    md5, other = store(root, {"a": b"alpha", "b": b"beta"}), store(root, {"c": b"gamma"})
    use_remote(root, str(tmp_path / "remote"))
    push(root, [md5, "0" * 32 + ".dir"])  # the cache lacks the second one
    remote = tmp_path / "remote/files/md5"
    assert (remote / md5[:2] / md5[2:]).is_file() and not (remote / other[:2] / other[2:]).exists()
    assert sorted(path.read_bytes() for path in remote.glob("*/*") if path.suffix != ".dir") == [b"alpha", b"beta"]


def test_the_remote_is_the_one_of_params_yaml_though_no_run_has_set_it(root: Path, tmp_path: Path) -> None:
    md5 = store(root, {"a": b"alpha"})
    use_remote(root, str(tmp_path / "earlier"))
    push(root, [md5], "../now")
    assert (tmp_path / "now/files/md5" / md5[:2] / md5[2:]).is_file() and not (tmp_path / "earlier").exists()


@pytest.mark.parametrize("below", ["", "/folder"])
def test_a_remote_that_is_a_file_is_said_before_dvc_fails(below: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=rf"{tmp_path}/file is a file; name a folder"):
        push(root, [], f"{tmp_path}/file{below}")


def test_a_remote_that_dvc_does_not_reach_is_told_in_its_words_alone(root: Path) -> None:
    with pytest.raises(RuntimeError, match="dvc push --run-cache: ERROR") as error:
        push(root, [], "ssh://127.0.0.1:9/x")
    assert "troubles" not in str(error.value)


def test_without_a_remote_nothing_is_pushed(root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"storage: \{remote"):
        push(root, [])


def test_garbage_collection_on_the_remote_keeps_what_was_pushed(root: Path, tmp_path: Path) -> None:
    md5, other = store(root, {"a": b"alpha", "b": b"beta"}), store(root, {"c": b"gamma"})
    use_remote(root, str(tmp_path / "remote"))
    push(root, [md5, other])
    collect(root, [md5], ["--cloud"])
    remote = tmp_path / "remote/files/md5"
    assert sorted(path.read_bytes() for path in remote.glob("*/*") if path.suffix != ".dir") == [b"alpha", b"beta"]
    shutil.rmtree(cache_folder(root))
    Store(root, fetch=True).place(md5, tmp_path / "back")
    assert dvc_digest(tmp_path / "back") == md5
