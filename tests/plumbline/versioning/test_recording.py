"""Promises 7 and 8 of the design: all or nothing on disk, and a dvc.lock that never lies."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from plumbline.versioning import code
from plumbline.versioning import recording as recording_module
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.dvc_locks import Busy
from plumbline.versioning.lock import read_lock, upstream
from plumbline.versioning.pipeline import on_request
from plumbline.versioning.recording import InputsChanged, Step, recording
from plumbline.versioning.scratch import acted_on, keep_acted_on, parts_of, scratch, sweep
from plumbline.versioning.status import changed_stages, unfinished_mark

DVC_YAML = """
stages:
  letters:
    cmd: python make.py letters
    deps: [table.txt, source.txt]
    params: [letters]
    outs: [data/letters]
  choice:
    foreach: ${choices}
    do:
      cmd: python make.py choice ${key}
      deps: [table.txt, data/letters]
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
    (tmp_path / "table.txt").write_text("table")
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n[cache]\n    type = hardlink,copy\n")
    return tmp_path


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def make(root: Path, name: str, content: str, **overrides: object) -> Step:
    with recording(root, name, overrides) as (step, out):
        (out / "file.txt").write_text(content)
        (out / "sub").mkdir()
        (out / "sub" / "b.json").write_text(json.dumps(step.params, sort_keys=True))
    return step


def test_publishes_and_leaves_dvc_nothing_to_do(root: Path) -> None:
    step = make(root, "letters", "one")
    assert (root / "data/letters/file.txt").read_text() == "one"
    assert "letters" not in changed_stages(root)
    assert dvc(root, "status", "letters").strip() == "Data and pipelines are up to date."
    entry = read_lock(root)["letters"]
    assert entry.md5 == step.md5 == dvc_digest(root / "data/letters")
    assert entry.params["letters"] == {"n": 2}


def test_override_is_recorded_and_shows_as_modified(root: Path) -> None:
    make(root, "letters", "one")
    step = make(root, "choice@a-1", "set", seed=9)
    assert step.params == {"choices.a-1": {"seed": 9}}
    assert read_lock(root)["choice@a-1"].params["choices.a-1"] == {"seed": 9}
    assert "params.yaml" in str(changed_stages(root)["choice@a-1"])
    # The run cache must not hand the overridden output to whoever asks for the parameters of params.yaml.
    runs = [yaml.safe_load(p.read_text()) for p in (root / ".dvc/cache/runs").rglob("*") if p.is_file()]
    seeds = [r["params"]["params.yaml"]["choices.a-1"]["seed"] for r in runs if "a-1" in r["cmd"]]
    assert seeds == [9]


def test_failure_keeps_the_last_good_version(root: Path) -> None:
    step = make(root, "letters", "one")
    lock = (root / "dvc.lock").read_bytes()
    with pytest.raises(ZeroDivisionError), recording(root, "letters") as (_, out):
        (out / "file.txt").write_text("half")
        raise ZeroDivisionError
    assert dvc_digest(root / "data/letters") == step.md5
    assert (root / "dvc.lock").read_bytes() == lock
    assert list((root / "data/.tmp").iterdir()) == []


def test_failed_commit_restores_the_last_good_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(root, "letters", "one")
    lock = (root / "dvc.lock").read_bytes()

    def refuse(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(recording_module, "_commit", refuse)
    with pytest.raises(OSError, match="no space"):
        make(root, "letters", "two")
    assert dvc_digest(root / "data/letters") == step.md5
    assert (root / "dvc.lock").read_bytes() == lock


def test_what_a_step_goes_on_from_stays_until_its_output_is_published(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(root, "letters")
    with recording(root, "letters") as (_, out):
        (parts / "layer").mkdir(parents=True)
        (out / "file.txt").write_text("one")
        assert parts.is_dir()
    assert not parts.exists()
    parts.mkdir()
    monkeypatch.setattr(recording_module, "_commit", lambda *_: [][1])
    with pytest.raises(IndexError):
        make(root, "letters", "two")
    assert parts.is_dir()


def test_input_that_moves_during_the_run_fails_it(root: Path) -> None:
    step = make(root, "letters", "one")
    with (
        pytest.raises(InputsChanged, match=r"source\.txt changed while letters ran"),
        recording(root, "letters") as (_, out),
    ):
        (out / "file.txt").write_text("two")
        (root / "source.txt").write_text("beta!")
    assert dvc_digest(root / "data/letters") == step.md5


def test_tampered_input_is_refused_with_the_fix(root: Path) -> None:
    make(root, "letters", "one")
    target = root / "data/letters/file.txt"
    target.chmod(0o644)
    target.unlink()
    target.write_text("tampered")
    with pytest.raises(InputsChanged, match=r"dvc checkout --force data/letters"):
        make(root, "choice@a-1", "set")


def test_tampered_partition_of_a_folder_input_is_refused(root: Path) -> None:
    make(root, "letters", "one")
    make(root, "choice@a-1", "a")
    make(root, "choice@b-2", "b")
    target = root / "data/choice/b-2/file.txt"
    target.unlink()
    target.write_text("tampered")
    with pytest.raises(InputsChanged, match="data/choice/b-2"):
        make(root, "all", "x")


def test_params_edited_during_the_run_are_recorded_as_they_were_read(root: Path) -> None:
    with recording(root, "letters") as (step, out):
        (out / "file.txt").write_text(str(step.params["letters"]["n"]))
        (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "letters": {"n": 3}}))
    assert read_lock(root)["letters"].params["letters"] == {"n": 2}
    assert "params.yaml" in str(changed_stages(root)["letters"])


def test_under_dvc_repro_which_records_them_at_the_end_params_must_not_change(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make(root, "letters", "one")
    monkeypatch.setenv("DVC_STAGE", "letters")
    with (
        pytest.raises(InputsChanged, match=r"letters in params\.yaml changed while letters ran"),
        recording(root, "letters") as (_, out),
    ):
        (out / "file.txt").write_text("two")
        (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "letters": {"n": 3}}))
    assert dvc_digest(root / "data/letters") == step.md5


def test_under_dvc_repro_a_stage_removes_what_killed_ones_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that still run."""
    dead = root / "data/.tmp/choice@a-1.x1"
    dead.mkdir(parents=True)
    monkeypatch.setenv("DVC_STAGE", "letters")
    with scratch(root, "choice@b-2") as alive:
        make(root, "letters", "one")
        assert not dead.exists() and alive.exists()


@pytest.fixture
def library(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one module, which builds the letters of the workspace."""
    folder = root / "library" / "plumbline"
    (folder / "letters").mkdir(parents=True)
    for name in ("__init__.py", "letters/__init__.py"):
        (folder / name).write_text("")
    (folder / "letters" / "build.py").write_text("N = 1\n")
    stages = yaml.safe_load(DVC_YAML)
    versions = {"cmd": "plumbline code-versions", "deps": [code.LINK], "outs": [code.VERSIONS]}
    stages["stages"] = {code.STAGE: versions, **stages["stages"]}
    stages["stages"]["letters"]["params"].append({code.VERSIONS: ["letters"]})
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    monkeypatch.setattr(code, "LIBRARY", folder)
    return folder


def test_previous_is_offered_only_if_the_same_code_made_it(root: Path, library: Path) -> None:
    assert make(root, "letters", "one").previous is None
    assert make(root, "letters", "two").previous == root / "data/letters"
    (library / "letters/build.py").write_text("N = 2\n")
    assert make(root, "letters", "three").previous is None


def test_a_step_records_the_code_that_ran(root: Path, library: Path) -> None:
    step = make(root, "letters", "one")
    assert step.code_version == read_lock(root)["letters"].code_version == code.code_version("letters")
    assert step.params.keys() == {"letters"}
    assert "letters" not in changed_stages(root)
    assert dvc(root, "status", "letters", code.STAGE).strip() == "Data and pipelines are up to date."
    (library / "letters/build.py").write_text("N = 2\n")
    assert changed_stages(root)["letters"] == ["the code changed"]
    assert read_lock(root)["letters"].code_version == step.code_version != code.code_version("letters")
    recording_module.refresh_facts(root)
    assert "letters" in json.loads(dvc(root, "status", "--json", "letters"))
    assert changed_stages(root)["letters"] == ["the code changed"]


def test_code_that_changes_during_the_run_fails_it(root: Path, library: Path) -> None:
    """Otherwise a part of the code may have been imported before the change and a part after it."""
    step = make(root, "letters", "one")
    with (
        pytest.raises(InputsChanged, match="the code of letters changed while"),
        recording(root, "letters") as (_, out),
    ):
        (out / "file.txt").write_text("two")
        (library / "letters/build.py").write_text("N = 2\n")
    assert dvc_digest(root / "data/letters") == step.md5


def test_an_override_leaves_the_code_version_alone(root: Path, library: Path) -> None:
    step = make(root, "letters", "one", n=9)
    assert step.params == {"letters": {"n": 9}}
    entry = read_lock(root)["letters"]
    assert (entry.params, entry.code_version) == ({"letters": {"n": 9}}, code.code_version("letters"))


def test_a_comment_in_the_library_is_recorded_and_runs_nothing(root: Path, library: Path) -> None:
    make(root, "letters", "one")
    (library / "letters/build.py").write_text("# why\nN = 1\n")
    assert "letters" not in changed_stages(root)
    assert code.STAGE in json.loads(dvc(root, "status", "--json", code.STAGE))
    recording_module.refresh_facts(root)
    assert dvc(root, "status", "letters", code.STAGE).strip() == "Data and pipelines are up to date."
    lock = (root / "dvc.lock").read_bytes()
    recording_module.refresh_facts(root)
    assert (root / "dvc.lock").read_bytes() == lock


def test_under_dvc_repro_other_code_than_recorded_is_refused(
    root: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording_module.refresh_facts(root)
    lock = (root / "dvc.lock").read_bytes()
    (library / "letters/build.py").write_text("N = 2\n")
    monkeypatch.setenv("DVC_STAGE", "letters")
    with pytest.raises(InputsChanged, match="dvc repro code_versions"):
        make(root, "letters", "one")
    assert (root / "dvc.lock").read_bytes() == lock


def test_undeclared_input_is_an_error(root: Path) -> None:
    step = make(root, "letters", "one")
    with pytest.raises(KeyError, match="not among the deps"):
        step.input("choice", "a-1")


def test_unknown_stage_names_the_known_ones(root: Path) -> None:
    with pytest.raises(KeyError, match="choice@a-1"):
        make(root, "choice@c-3", "x")


def _kill_in_body(root: Path, marker: Path) -> None:
    with recording(root, "letters") as (_, out):
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
    assert dvc_digest(root / "data/letters") == first.md5
    assert sweep(root) == 1 and list((root / "data/.tmp").iterdir()) == []
    assert make(root, "letters", "two").md5 == undisturbed


@pytest.mark.parametrize("use", ["read", "write"])
def test_beside_a_command_of_dvc_on_the_same_files_it_says_who_and_leaves_the_output(root: Path, use: str) -> None:
    first, pid = make(root, "letters", "one"), os.getppid()
    blocker = {"pid": pid, "cmd": "dvc repro"}
    path = str(root / "data/letters")
    lock = root / ".dvc/tmp/rwlock"
    lock.write_text(json.dumps({use: {path: [blocker] if use == "read" else blocker}}))
    with pytest.raises(Busy, match=rf"process {pid}, dvc repro, uses {path}\): give this one again when it has ended"):
        make(root, "letters", "two")
    assert dvc_digest(root / "data/letters") == first.md5 == read_lock(root)["letters"].md5
    assert list((root / "data/.tmp").iterdir()) == []
    lock.unlink()
    assert make(root, "letters", "two").md5 != first.md5


def test_any_later_step_removes_what_a_killed_one_left_and_what_still_runs_stays(root: Path) -> None:
    """A Dagster run, which no `plumbline run` cleans up after. Names of steps may have dots."""
    make(root, "letters", "one")
    place = root / "data/.tmp"
    for left in ("code_versions.a1b2", "choice@a-1.x1", "choice@a-1.b.x2", "choice@a-1.b.x3.old"):
        (place / left).mkdir(parents=True)
    with scratch(root, "choice@b-2.c") as busy:
        make(root, "choice@a-1", "x")
        assert list(place.iterdir()) == [busy]
    assert list(place.iterdir()) == []


def _kill_while_publishing(root: Path, act: str, after: int) -> None:
    """Make a second version and die after a number of renames, removals or writes of dvc.lock."""
    calls = 0

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            result = act(*arguments, **options)
            calls += 1
            if calls == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return acted

    if act == "rename":
        Path.rename = dying(Path.rename)  # type: ignore[method-assign]
    else:
        setattr(recording_module, act, dying(getattr(recording_module, act)))
    make(root, "letters", "two")


@pytest.mark.parametrize(("act", "after"), [("rename", 1), ("rename", 2), ("write_entry", 1), ("remove", 1)])
@pytest.mark.parametrize("next_command", ["sweep", "step"])
def test_a_kill_at_any_moment_of_publishing_leaves_the_output_that_the_lock_names(
    root: Path, act: str, after: int, next_command: str
) -> None:
    first = make(root, "letters", "one")
    process = multiprocessing.get_context("spawn").Process(target=_kill_while_publishing, args=(root, act, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (root / "data/letters").exists() is ((act, after) != ("rename", 1))
    if next_command == "sweep":
        sweep(root)
    else:
        with scratch(root, "letters"):
            pass
    assert dvc_digest(root / "data/letters") == read_lock(root)["letters"].md5
    assert (read_lock(root)["letters"].md5 == first.md5) is (act == "rename")
    assert "letters" not in changed_stages(root)
    sweep(root)
    assert list((root / "data/.tmp").iterdir()) == []
    assert make(root, "letters", "two").md5 != first.md5


def test_what_a_user_changed_or_an_interrupted_removal_left_is_not_put_back(root: Path) -> None:
    make(root, "letters", "one")
    aside = root / "data/.tmp/letters.x1.old"
    shutil.copytree(root / "data/letters", aside)
    (aside / "file.txt").unlink()
    shutil.rmtree(root / "data/letters")
    assert sweep(root) == 1 and not aside.exists() and not (root / "data/letters").exists()


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
    lock = read_lock(root)
    for key in ("a-1", "b-2"):
        assert lock[f"choice@{key}"].md5 == dvc_digest(root / "data/choice" / key)
    assert set(changed_stages(root)) == {"all"}


def test_what_a_stage_rests_on(tmp_path: Path) -> None:
    def entry(out: str, **deps: str) -> dict:
        return {"outs": [{"path": out, "md5": f"md5-{out}"}], "deps": [{"path": p, "md5": m} for p, m in deps.items()]}

    stages = {
        "a": entry("a", source="c"),
        "b": entry("b", a="md5-a"),
        "other": entry("other", a="md5-a"),
        "c": entry("c", a="md5-a", b="md5-b", source="d"),
    }
    read = {"a": "md5-a", "b": "md5-b", "source": "d"}
    for recorded in (
        stages,
        {name: stage for name, stage in stages.items() if name != "c"},
    ):  # before and after its end
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": recorded}))
        assert upstream(tmp_path, {"c": "md5-c"}, read) == {"a": "md5-a", "b": "md5-b", "c": "md5-c"}
    assert upstream(tmp_path, {"c": "md5-c"}, {}) == {"c": "md5-c"}


def test_status_agrees_with_dvc(root: Path) -> None:
    def both() -> tuple[set[str], set[str]]:
        found = json.loads(dvc(root, "status", "--json"))
        return set(changed_stages(root)), {name.split(":")[-1] for name in found}

    ours, dvcs = both()
    assert ours == dvcs == {"letters", "choice@a-1", "choice@b-2", "all"}
    make(root, "letters", "one")
    make(root, "choice@a-1", "a")
    make(root, "choice@b-2", "b")
    make(root, "all", "x")
    assert both() == (set(), set())
    mark = unfinished_mark(root, "choice@a-1")
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert changed_stages(root) == {"choice@a-1": ["it was killed before MLflow knew of it"]}
    mark.unlink()
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "choices": {**PARAMS["choices"], "b-2": {"seed": 5}}}))
    ours, dvcs = both()
    assert ours == dvcs == {"choice@b-2"}
    (root / "table.txt").write_text("other")
    ours, dvcs = both()
    assert ours == dvcs == {"letters", "choice@a-1", "choice@b-2"}
    shutil.rmtree(root / "data/letters")
    assert changed_stages(root)["letters"] == ["table.txt: changed", "data/letters: missing"]


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
    assert on_request(root) == {where}
    assert where not in {name.split("@")[0] for name in changed_stages(root)}
    assert {name.split("@")[0] for name in changed_stages(root, where)} == {where}


def test_what_a_killed_command_of_dvc_repro_acted_on_is_its_previous_output(root: Path) -> None:
    """DVC removes the output that it has not recorded; what the command did outside the workspace is done."""
    make(root, "letters", "one")
    kept = acted_on(root, "letters", "")
    keep_acted_on(root, "letters", "", root / "data/letters")
    with recording(root, "letters") as (step, out):
        assert step.previous == root / "data/letters"
        (out / "file.txt").write_text("two")
    shutil.rmtree(root / "data/letters")
    (root / "dvc.lock").unlink()
    with recording(root, "letters") as (step, out):
        assert step.previous == kept and (kept / "file.txt").read_text() == "one"
        (out / "file.txt").write_text("three")
    assert acted_on(root, "letters", "of other code") != kept
