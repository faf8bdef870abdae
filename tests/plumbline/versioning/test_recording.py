"""Promises 7 and 8 of the design: all or nothing on disk, and a dvc.lock that never lies."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from plumbline.versioning import recording as versioning
from plumbline.versioning.digest import content_md5

DVC_YAML = """
stages:
  letters:
    cmd: python make.py letters
    deps: [plumbline/letters.py, source.txt]
    params: [letters]
    outs: [data/letters]
  choice:
    foreach: ${choices}
    do:
      cmd: python make.py choice ${key}
      deps: [plumbline/letters.py, data/letters]
      params: ["choices.${key}"]
      outs: ["data/choice/${key}"]
  all:
    cmd: python make.py all
    deps: [data/choice]
    outs: [data/all]
"""
PARAMS = {"letters": {"n": 2}, "choices": {"a-1": {"seed": 1}, "b-2": {"seed": 2}}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "source.txt").write_text("alpha")
    (tmp_path / "plumbline").mkdir()
    (tmp_path / "plumbline" / "letters.py").write_text("# code\n")
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n[cache]\n    type = hardlink,copy\n")
    versioning._resolved.cache_clear()
    return tmp_path


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def make(root: Path, name: str, content: str, **overrides: object) -> versioning.Step:
    with versioning.recording(root, name, overrides) as (step, out):
        (out / "file.txt").write_text(content)
        (out / "sub").mkdir()
        (out / "sub" / "b.json").write_text(json.dumps(step.params, sort_keys=True))
    return step


def test_publishes_and_leaves_dvc_nothing_to_do(root: Path) -> None:
    step = make(root, "letters", "one")
    assert (root / "data/letters/file.txt").read_text() == "one"
    assert "letters" not in versioning.changed_stages(root)
    assert dvc(root, "status", "letters").strip() == "Data and pipelines are up to date."
    entry = versioning.lock_entries(root)["letters"]
    assert entry["outs"][0]["md5"] == step.md5 == content_md5(root / "data/letters")
    assert entry["params"]["params.yaml"]["letters"] == {"n": 2}


def test_code_version_is_that_of_the_lock_entry(root: Path) -> None:
    step = make(root, "letters", "one")
    entry = versioning.lock_entries(root)["letters"]
    assert step.code_version == versioning.code_version(root, "letters") == versioning.code_version_of(entry)
    (root / "plumbline/letters.py").write_text("# other code\n")
    assert versioning.code_version(root, "letters") != versioning.code_version_of(entry)


def test_override_is_recorded_and_shows_as_modified(root: Path) -> None:
    make(root, "letters", "one")
    step = make(root, "choice@a-1", "set", seed=9)
    assert step.params == {"choices.a-1": {"seed": 9}}
    assert versioning.lock_entries(root)["choice@a-1"]["params"]["params.yaml"]["choices.a-1"] == {"seed": 9}
    assert "params.yaml" in str(versioning.changed_stages(root)["choice@a-1"])
    # The run cache must not hand the overridden output to whoever asks for the parameters of params.yaml.
    runs = [yaml.safe_load(p.read_text()) for p in (root / ".dvc/cache/runs").rglob("*") if p.is_file()]
    seeds = [r["params"]["params.yaml"]["choices.a-1"]["seed"] for r in runs if "a-1" in r["cmd"]]
    assert seeds == [9]


def test_failure_keeps_the_last_good_version(root: Path) -> None:
    step = make(root, "letters", "one")
    lock = (root / "dvc.lock").read_bytes()
    with pytest.raises(ZeroDivisionError), versioning.recording(root, "letters") as (_, out):
        (out / "file.txt").write_text("half")
        raise ZeroDivisionError
    assert content_md5(root / "data/letters") == step.md5
    assert (root / "dvc.lock").read_bytes() == lock
    assert list((root / "data/.tmp").iterdir()) == []


def test_failed_commit_restores_the_last_good_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(root, "letters", "one")
    lock = (root / "dvc.lock").read_bytes()

    def refuse(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(versioning, "_commit", refuse)
    with pytest.raises(OSError, match="no space"):
        make(root, "letters", "two")
    assert content_md5(root / "data/letters") == step.md5
    assert (root / "dvc.lock").read_bytes() == lock


def test_input_that_moves_during_the_run_fails_it(root: Path) -> None:
    step = make(root, "letters", "one")
    with (
        pytest.raises(versioning.InputsChanged, match=r"source\.txt changed while letters ran"),
        versioning.recording(root, "letters") as (_, out),
    ):
        (out / "file.txt").write_text("two")
        (root / "source.txt").write_text("beta!")
    assert content_md5(root / "data/letters") == step.md5


def test_tampered_input_is_refused_with_the_fix(root: Path) -> None:
    make(root, "letters", "one")
    target = root / "data/letters/file.txt"
    target.chmod(0o644)
    target.unlink()
    target.write_text("tampered")
    with pytest.raises(versioning.InputsChanged, match=r"dvc checkout --force data/letters"):
        make(root, "choice@a-1", "set")


def test_tampered_partition_of_a_folder_input_is_refused(root: Path) -> None:
    make(root, "letters", "one")
    make(root, "choice@a-1", "a")
    make(root, "choice@b-2", "b")
    target = root / "data/choice/b-2/file.txt"
    target.unlink()
    target.write_text("tampered")
    with pytest.raises(versioning.InputsChanged, match="data/choice/b-2"):
        make(root, "all", "x")


def test_params_edited_during_the_run_are_recorded_as_they_were_read(root: Path) -> None:
    with versioning.recording(root, "letters") as (step, out):
        (out / "file.txt").write_text(str(step.params["letters"]["n"]))
        (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "letters": {"n": 3}}))
    assert versioning.lock_entries(root)["letters"]["params"]["params.yaml"]["letters"] == {"n": 2}
    assert "params.yaml" in str(versioning.changed_stages(root)["letters"])


def test_previous_is_offered_only_if_the_same_code_made_it(root: Path) -> None:
    assert make(root, "letters", "one").previous is None
    assert make(root, "letters", "two").previous == root / "data/letters"
    (root / "plumbline/letters.py").write_text("# other code\n")
    assert make(root, "letters", "three").previous is None


def test_undeclared_input_is_an_error(root: Path) -> None:
    step = make(root, "letters", "one")
    with pytest.raises(KeyError, match="not among the deps"):
        step.input("choice", "a-1")


def test_unknown_stage_names_the_known_ones(root: Path) -> None:
    with pytest.raises(KeyError, match="choice@a-1"):
        make(root, "choice@c-3", "x")


def _kill_in_body(root: Path, marker: Path) -> None:
    with versioning.recording(root, "letters") as (_, out):
        (out / "file.txt").write_text("half")
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_run_leaves_the_last_good_version_and_a_rerun_is_undisturbed(root: Path) -> None:
    undisturbed = make(root, "letters", "two").md5
    first = make(root, "letters", "one")
    process = multiprocessing.get_context("spawn").Process(target=_kill_in_body, args=(root, root / "started"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (root / "started").exists()
    assert content_md5(root / "data/letters") == first.md5
    assert versioning.sweep(root) == 1 and list((root / "data/.tmp").iterdir()) == []
    assert make(root, "letters", "two").md5 == undisturbed


def _write(root: Path, name: str, content: str) -> None:
    make(root, name, content)


def test_steps_at_the_same_time_do_not_collide(root: Path) -> None:
    make(root, "letters", "one")
    context = multiprocessing.get_context("spawn")
    jobs = [("choice@a-1", "a"), ("choice@b-2", "b"), ("choice@a-1", "a")]
    processes = [context.Process(target=_write, args=(root, name, content)) for name, content in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    lock = versioning.lock_entries(root)
    for key in ("a-1", "b-2"):
        assert lock[f"choice@{key}"]["outs"][0]["md5"] == content_md5(root / "data/choice" / key)
    assert set(versioning.changed_stages(root)) == {"all"}


def test_what_a_stage_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(out: str, **deps: str) -> dict:
        return {"outs": [{"path": out, "md5": f"md5-{out}"}], "deps": [{"path": p, "md5": m} for p, m in deps.items()]}

    lock = {
        "a": entry("a", code="c"),
        "b": entry("b", a="md5-a"),
        "other": entry("other", a="md5-a"),
        "c": entry("c", a="md5-a", b="md5-b", code="d"),
    }
    monkeypatch.setattr(versioning, "lock_entries", lambda _: lock)
    assert versioning.upstream(Path(), "c") == {"a": "md5-a", "b": "md5-b", "c": "md5-c"}
    assert versioning.upstream(Path(), "nothing") == {}


def test_status_agrees_with_dvc(root: Path) -> None:
    def both() -> tuple[set[str], set[str]]:
        found = json.loads(dvc(root, "status", "--json"))
        return set(versioning.changed_stages(root)), {name.split(":")[-1] for name in found}

    ours, dvcs = both()
    assert ours == dvcs == {"letters", "choice@a-1", "choice@b-2", "all"}
    make(root, "letters", "one")
    make(root, "choice@a-1", "a")
    make(root, "choice@b-2", "b")
    make(root, "all", "x")
    assert both() == (set(), set())
    mark = versioning.unfinished_mark(root, "choice@a-1")
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert versioning.changed_stages(root) == {"choice@a-1": ["it was killed before MLflow knew of it"]}
    mark.unlink()
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "choices": {**PARAMS["choices"], "b-2": {"seed": 5}}}))
    ours, dvcs = both()
    assert ours == dvcs == {"choice@b-2"}
    (root / "plumbline/letters.py").write_text("# other code\n")
    ours, dvcs = both()
    assert ours == dvcs == {"letters", "choice@a-1", "choice@b-2"}
    shutil.rmtree(root / "data/letters")
    assert versioning.changed_stages(root)["letters"] == ["plumbline/letters.py: changed", "data/letters: missing"]


def test_dvc_reads_the_lock_file_that_we_write(root: Path) -> None:
    make(root, "letters", "ümlaut")
    (root / "source.txt").write_text("beta")
    assert "source.txt" in dvc(root, "status", "letters")
    (root / "source.txt").write_text("alpha")
    shutil.rmtree(root / "data/letters")
    dvc(root, "checkout", "letters")
    assert (root / "data/letters/file.txt").read_text() == "ümlaut"


@pytest.mark.parametrize("where", ["letters", "choice"])
def test_what_runs_on_request_is_asked_about_by_name_only(root: Path, where: str) -> None:
    stages = yaml.safe_load(DVC_YAML)
    stage = stages["stages"][where]
    stage.get("do", stage)["meta"] = {"on_request": True}
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    assert versioning.on_request(root) == {where}
    assert where not in {name.split("@")[0] for name in versioning.changed_stages(root)}
    assert {name.split("@")[0] for name in versioning.changed_stages(root, where)} == {where}
