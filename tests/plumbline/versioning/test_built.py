"""Outputs that workers wrote: found under what decides them, published unchanged or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from plumbline.versioning.built import OUT, Built, clear, draft, finish, folder_of, identity, is_built, take
from plumbline.versioning.lock import read_lock
from plumbline.versioning.recording import InputsChanged, Step, planned, recording
from plumbline.versioning.status import changed_stages

NAME, OTHER, HERE = "choice@a-1", "choice@b-2", {"host": "h", "pid": 1, "node": ""}
DVC_YAML = """
stages:
  choice:
    foreach: ${choices}
    do:
      cmd: python make.py choice ${key}
      deps: [table.txt]
      params: ["choices.${key}"]
      outs: ["data/choice/${key}"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"choices": {"a-1": {"seed": 1}, "b-2": {"seed": 2}}}))
    (tmp_path / "table.txt").write_text("table")
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def compute(step: Step, text: str = "made") -> Built:
    with draft(step) as out:
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
        return finish(step, out, HERE, 1.5, ((20, "said"),))


def publish(root: Path, name: str = NAME) -> Built | None:
    with recording(root, name) as (step, folder):
        return take(step, folder)


def test_what_a_worker_wrote_is_published_as_it_is(root: Path) -> None:
    step = planned(root, NAME)
    assert not is_built(step)
    built = compute(step)
    assert is_built(step) and (built.size, built.seconds) == (4, 1.5)
    assert publish(root) == built
    assert (root / "data/choice/a-1/sub/file.txt").read_text() == "made"
    assert read_lock(root)[NAME].md5 == built.md5 and NAME not in changed_stages(root)
    assert not is_built(step) and publish(root) is None


def test_what_changed_on_the_way_is_refused_and_the_last_version_stays(root: Path) -> None:
    compute(planned(root, NAME), "good")
    publish(root)
    before = read_lock(root)[NAME].md5
    (root / "table.txt").write_text("another table")
    step = planned(root, NAME)
    compute(step, "new")
    (folder_of(step) / OUT / "sub" / "file.txt").write_text("n\0w")
    with pytest.raises(InputsChanged, match=f"{NAME}: a worker wrote .* arrived"):
        publish(root)
    assert (root / "data/choice/a-1/sub/file.txt").read_text() == "good" and read_lock(root)[NAME].md5 == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": OTHER},
        {"inputs": {"table.txt": "0"}},
        {"params": {"choices.a-1": {"seed": 9}}},
        {"code_version": "another"},
        {"facts": {"data/base_model.yaml": {"weights": "w"}}},
    ],
    ids=str,
)
def test_whatever_decides_the_content_decides_the_place(root: Path, change: dict[str, Any]) -> None:
    step = planned(root, NAME)
    assert identity(replace(step, **change)) != identity(step)
    assert identity(replace(step, reads=[], seconds=3.0, md5="m")) == identity(step)


def test_the_slower_of_two_workers_changes_nothing(root: Path) -> None:
    step = planned(root, NAME)
    first = compute(step)
    assert compute(step) == first
    assert [path.name for path in (root / ".plumbline/built").iterdir()] == [folder_of(step).name]


def test_a_worker_that_fails_leaves_nothing(root: Path) -> None:
    step = planned(root, NAME)
    with pytest.raises(KeyError), draft(step) as out:
        (out / "half").touch()
        raise KeyError
    assert list((root / ".plumbline/built").iterdir()) == []


def test_what_nobody_will_take_is_removed_and_the_rest_stays(root: Path) -> None:
    step, other = planned(root, NAME), planned(root, OTHER)
    compute(step)
    compute(other)
    old = replace(step, code_version="old")
    compute(old)
    place = root / ".plumbline" / "built"
    (place / f"{folder_of(step).name}.12345678.draft").mkdir()
    (place / "gone@c.0123456789abcdef").mkdir()
    clear(root, {NAME: identity(step)})
    assert is_built(step) and is_built(other)
    assert {path.name for path in place.iterdir()} == {folder_of(step).name, folder_of(other).name}
    clear(root, {OTHER: "0123456789abcdef"})
    assert is_built(step) and not is_built(other), "another version of it is wanted"
