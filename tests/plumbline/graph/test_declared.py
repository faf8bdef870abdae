"""dvc.yaml follows the folders and files that params.yaml names: nobody edits it by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dvc.repo import Repo

from plumbline.cli.main import main
from plumbline.graph.declared import declare
from plumbline.versioning.pipeline import resolved
from tests.helpers.paths import PROJECT

PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
FOLDER = {"kind": "directory", "path": "chats"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / "chats").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "requested.yaml", ".dvcignore"):
        shutil.copyfile(PROJECT / name, root / name)
    Repo.init(str(root), no_scm=True).close()
    return root


def set_params(root: Path, **sections: Any) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **sections}))


def deps(root: Path, stage: str) -> list[str]:
    entry = yaml.safe_load((root / "dvc.yaml").read_text())["stages"][stage]
    return list(entry.get("do", entry).get("deps", []))


def test_what_names_nothing_leaves_every_byte(root: Path) -> None:
    assert declare(root) == [] and (root / "dvc.yaml").read_bytes() == (PROJECT / "dvc.yaml").read_bytes()


def test_every_kind_of_path_is_added_where_it_is_read_and_only_those_lines_change(root: Path, tmp_path: Path) -> None:
    (tmp_path / "traffic").mkdir()
    for name in ("items.jsonl", "template.jinja"):
        (root / name).touch()
    set_params(
        root,
        model={"name": "llama-stdlib-6m", "chat_template": "template.jinja"},
        corpus={"sources": {"chats": FOLDER}, "production": {**FOLDER, "path": str(tmp_path / "traffic")}},
        evaluation={"items": "items.jsonl"},
    )
    assert len(declare(root)) == 3 and declare(root) == []
    assert deps(root, "raw_corpus") == ["intake.yaml", str(tmp_path / "traffic"), "chats"]
    assert deps(root, "base_model") == [".plumbline/base_model", "template.jinja"]
    assert deps(root, "evaluation")[-1] == "items.jsonl"
    old, new = ((place / "dvc.yaml").read_text(encoding="utf-8").splitlines() for place in (PROJECT, root))
    assert [a.split(":")[0].strip() for a, b in zip(old, new, strict=True) if a != b] == ["deps"] * 3
    assert "chats" in resolved(root)["raw_corpus"].deps  # DVC reads it so


def test_a_folder_that_no_source_reads_any_more_is_taken_out(root: Path) -> None:
    set_params(root, corpus={"sources": {"chats": FOLDER}})
    declare(root)
    (root / "other").mkdir()
    set_params(root, corpus={"sources": {"other": {**FOLDER, "path": "other"}}})
    assert declare(root) == ["dvc.yaml, deps of raw_corpus: added other; removed chats, as params.yaml says"]
    assert deps(root, "raw_corpus") == ["intake.yaml", "other"]


def test_a_listed_parent_covers_what_lies_below_it_and_own_files_stay(root: Path) -> None:
    (root / "chats/german").mkdir()
    (root / "prepare.py").touch()
    text = (root / "dvc.yaml").read_text().replace("[intake.yaml]", "[intake.yaml, chats, prepare.py]")
    (root / "dvc.yaml").write_text(text)
    set_params(root, corpus={"sources": {"chats": {**FOLDER, "path": "chats/german"}}})
    assert declare(root) == []
    (root / "prepare.py").unlink()  # DVC would fail on it
    assert declare(root) == ["dvc.yaml, deps of raw_corpus: removed prepare.py, as params.yaml says"]


def test_a_path_that_is_not_there_is_for_the_check_before_the_run(root: Path) -> None:
    set_params(root, corpus={"sources": {"chats": {**FOLDER, "path": "chatz"}}})
    assert declare(root) == []
    result = CliRunner().invoke(main, ["run"], env={"PLUMBLINE_ROOT": str(root)})
    assert result.exit_code == 1 and "corpus source 'chats': there is no chatz" in result.output


def test_dvc_repro_is_told_the_command(root: Path) -> None:
    set_params(root, corpus={"sources": {"chats": FOLDER}})
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    shutil.copytree(PROJECT / "assets", root / "assets")
    shutil.copytree(PROJECT / "orchestration", root / "orchestration")
    shutil.copyfile(PROJECT / "pyproject.toml", root / "pyproject.toml")
    (root / ".dagster").mkdir()
    refused = CliRunner().invoke(main, ["materialize", "raw_corpus"], env=environment)
    assert refused.exit_code == 1 and "`plumbline declare` adds it" in refused.output
    assert "added chats" in CliRunner().invoke(main, ["declare"], env=environment).output
    assert "dvc.yaml lists what params.yaml names" in CliRunner().invoke(main, ["declare"], env=environment).output
