"""`changed_stages` without DVC: what is remembered is never older than what it was derived from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from plumbline.versioning import digest_memo, pipeline
from plumbline.versioning.config import new_project
from plumbline.versioning.digest_memo import DigestMemo
from plumbline.versioning.pipeline import on_request, resolved, stage_names
from plumbline.versioning.recording import recording
from plumbline.versioning.status import changed_stages

DVC_YAML = """
vars: [more.yaml]
stages:
  one:
    cmd: make one ${level}
    deps: [source]
    params: [n]
    outs: [data/one]
  many:
    foreach: ${choices}
    do:
      cmd: make many ${key}
      deps: [data/one]
      params: ["choices.${key}", other.yaml: [m]]
      outs: ["data/many/${key}"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    new_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text("n: 1\nchoices: {a: {seed: 1}}\n")
    (tmp_path / "more.yaml").write_text("level: 1\n")
    (tmp_path / "other.yaml").write_text("m: 1\n")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("text")
    for name in ("one", "many@a"):
        with recording(tmp_path, name) as (_, folder):
            (folder / "file").write_text(name)
    assert changed_stages(tmp_path) == {}
    return tmp_path


def dvc_must_not_be_asked(*_: object) -> None:
    raise AssertionError("DVC was asked")


def without_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "pipeline", dvc_must_not_be_asked)
    monkeypatch.setattr(digest_memo, "pipeline", dvc_must_not_be_asked)


def test_dvc_is_not_asked_where_nothing_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dvc(monkeypatch)
    assert changed_stages(root) == {}
    (root / "data/one/file").touch()
    with pytest.raises(AssertionError, match="DVC was asked"):
        changed_stages(root)


def write(name: str, text: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text)

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, list[str]]]] = {
    "a parameter": (write("params.yaml", "n: 2\nchoices: {a: {seed: 1}}\n"), {"one": ["params.yaml: n changed"]}),
    "a parameter is gone": (write("params.yaml", "choices: {a: {seed: 1}}\n"), {"one": ["params.yaml: n changed"]}),
    "a choice": (
        write("params.yaml", "n: 1\nchoices: {a: {seed: 1}, b: {seed: 2}}\n"),
        {"many@b": ["never run"]},
    ),
    "a variable": (write("more.yaml", "level: 2\n"), {"one": ["the command changed"]}),
    "another file of parameters": (write("other.yaml", "m: 2\n"), {"many@a": ["other.yaml: m changed"]}),
    "dvc.yaml": (write("dvc.yaml", DVC_YAML.replace("make many", "make all")), {"many@a": ["the command changed"]}),
    "a source": (write("source/file", "texT"), {"one": ["source: changed"]}),
    "a source is renamed": (
        lambda root: (root / "source/file").rename(root / "source/x"),
        {"one": ["source: changed"]},
    ),
    "a source is ignored": (write(".dvcignore", "file\n"), {"one": ["source: changed", "data/one: changed"]}),
    "an output": (write("data/many/a/file", "many@A"), {"many@a": ["data/many/a: changed"]}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_through_what_is_remembered(name: str, root: Path) -> None:
    change, expected = CHANGES[name]
    change(root)
    changed = changed_stages(root)
    assert changed.items() >= expected.items()
    assert changed_stages(root) == changed


def test_a_file_that_keeps_its_size_and_time_is_read_again_if_it_is_another(root: Path) -> None:
    path = root / "source/file"
    before = path.stat()
    (root / "other").write_text("texT")
    (root / "other").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed_stages(root) == {"one": ["source: changed"]}


@pytest.mark.parametrize("file", [digest_memo.FILE, pipeline.RESOLVED])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"by": 1}'])
def test_a_corrupt_memo_is_ignored(file: str, content: str, root: Path) -> None:
    (root / file).write_text(content)
    assert changed_stages(root) == {}
    assert json.loads((root / file).read_text())


def test_what_compiling_leaves_behind_is_no_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = DigestMemo(root)
    without_dvc(monkeypatch)
    (root / "source/__pycache__").mkdir()
    (root / "source/__pycache__/x.pyc").write_text("")
    assert DigestMemo(root).get("source") == memo.get("source") is not None
    assert DigestMemo(root).get("nowhere") is None


def test_the_names_of_stages_need_no_dvc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dvc(monkeypatch)
    assert stage_names(root) == ["one", "many"] and on_request(root) == set()
    assert list(resolved(root)) == ["one", "many@a"]
    stages = yaml.safe_load(DVC_YAML)
    stages["stages"]["many"]["do"]["meta"] = {"on_request": True}
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages))
    assert on_request(root) == {"many"}


@pytest.mark.parametrize("text", ["[]", "{", '{"data/one": 5, "source": ["x"]}', '{"source": null}', "\0"])
def test_a_damaged_memo_only_costs_time(root: Path, text: str) -> None:
    for name in ("digests.json", "stages.json", "code.json", "base_model_hashes.json"):
        (root / ".plumbline" / name).write_text(text)
    assert changed_stages(root) == {}
