"""What stages depend on without reading it as a file: the base model's bytes, and the outputs that the grid names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from plumbline.base_model.folder import base_model_digest
from plumbline.versioning.current_facts import current, link_inputs
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.facts import BASE_MODEL, FACTS, MODEL_LINK, NAMED_OUTPUTS
from plumbline.versioning.lock import read_lock
from plumbline.versioning.recording import InputsChanged, recording, refresh_facts
from plumbline.versioning.status import changed_stages, leftovers
from plumbline.versioning.verify import verify
from tests.helpers.paths import PROJECT

STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
DVC_YAML = """
stages:
  activation_stats:
    foreach: ${calibrations}
    do:
      cmd: "true"
      params: [data/base_model.yaml: [weights]]
      outs: ["data/activation_stats/${key}"]
  tokenized_samples:
    cmd: "true"
    params: [data/base_model.yaml: [tokenizer]]
    outs: [data/tokenized_samples]
  calibration_report:
    cmd: "true"
    params: [data/named_outputs.yaml: [activation_stats]]
    outs: [data/calibration_report]
"""
CHOICE = {"strategy": "random", "n": 1}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with three assets; choice `c` is not in the grid."""
    root = tmp_path / "workspace"
    (root / "base").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        (root / "base" / name).write_text(f"{{}} {name}")
    stages = yaml.safe_load(DVC_YAML)["stages"]
    stages |= {name: STAGES[name] for name in ("base_model", "named_outputs")}
    stages["base_model"]["cmd"] = f"{sys.executable} -m plumbline base-model"
    stages["named_outputs"] |= {
        "cmd": f"{sys.executable} -m plumbline named-outputs",
        "deps": ["data/activation_stats"],
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    set_params(root, model={"name": "base"}, calibrations=dict.fromkeys("abc", CHOICE), grid=["a", "b"])
    Repo.init(str(root), no_scm=True).close()
    monkeypatch.delenv("PLUMBLINE_ROOT", raising=False)
    link_inputs(root)
    return root


def set_params(root: Path, grid: list[str], **sections: Any) -> None:
    params = yaml.safe_load((PROJECT / "params.yaml").read_text()) | {"studies": {}}
    params |= {"schemes": {"w4": {"method": "rtn"}}, "grid": {"calibrations": grid, "schemes": ["w4"]}}
    params |= {"deployment": {"scheme": "w4"}} | sections
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def make(root: Path, name: str, content: str = "") -> str:
    with recording(root, name) as (step, out):
        (out / "file").write_text(content or name)
    return step.md5


def make_all(root: Path, *choices: str) -> None:
    make(root, "tokenized_samples")
    for choice in choices:
        make(root, f"activation_stats@{choice}")
    make(root, "calibration_report")


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def stale(root: Path) -> set[str]:
    return set(changed_stages(root))


def test_both_doors_call_everything_made_current(root: Path) -> None:
    make_all(root, "a", "b", "c")
    assert changed_stages(root) == {} and json.loads(dvc(root, "status", "--json")) == {}


@pytest.mark.parametrize("under_dvc", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_base_model_that_changes_during_the_run_fails_it(
    root: Path, under_dvc: bool, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise dvc.lock, and DVC's run cache, would name the weights of before for what others made."""
    make_all(root, "a", "b", "c")
    lock, name = (root / "dvc.lock").read_bytes(), "activation_stats@a"
    if under_dvc:
        monkeypatch.setenv("DVC_STAGE", name)
    with pytest.raises(InputsChanged, match="the base model's weights changed"), recording(root, name) as (_, out):
        (out / "file").write_text("made of both")
        if gone:
            shutil.rmtree(root / "base")
        else:
            (root / "base" / "model.safetensors").write_text("others")
    assert (root / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize(
    ("file", "reads_it", "why"),
    [
        ("model.safetensors", {"activation_stats@a", "activation_stats@b", "activation_stats@c"}, "weights"),
        ("config.json", {"activation_stats@a", "activation_stats@b", "activation_stats@c"}, "weights"),
        ("tokenizer.json", {"tokenized_samples"}, "tokenizer"),
        ("README.md", set(), ""),
    ],
)
def test_a_changed_byte_of_the_base_model_is_seen_by_what_reads_it(
    root: Path, file: str, reads_it: set[str], why: str
) -> None:
    """Once, nothing was out of date, and a new scheme failed on statistics of other weights, which nothing renewed."""
    make_all(root, "a", "b", "c")
    path = root / "base" / file
    path.write_text(path.read_text()[:-1] + "X")
    changed = changed_stages(root)
    assert changed == {name: [f"the base model's {why} changed"] for name in reads_it}
    assert "base_model" in json.loads(dvc(root, "status", "--json"))
    refresh_facts(root)
    assert set(json.loads(dvc(root, "status", "--json"))) == reads_it
    for name in reads_it:
        make(root, name)
    assert stale(root) == set()
    assert current(root, BASE_MODEL)["weights"] == base_model_digest(root / "base")


def test_facts_that_are_recorded_are_not_recorded_again(root: Path) -> None:
    """Once, each step published each file of facts anew: half of what DVC cost."""
    make_all(root, "a", "b", "c")
    refresh_facts(root)
    before = {path: written(path) for name in (*FACTS, "dvc.lock") if (path := root / name).exists()}
    assert len(before) == 3
    make(root, "activation_stats@a", "the same step with the facts of before")
    assert {path for path, then in before.items() if written(path) != then} == {root / "dvc.lock"}
    refresh_facts(root)
    assert {path for path, then in before.items() if written(path) != then} == {root / "dvc.lock", root / NAMED_OUTPUTS}


def written(path: Path) -> tuple[int, int]:
    """What differs once a file is written again; an inode may be given anew."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_dvc_repro_sees_the_changed_byte(root: Path) -> None:
    make_all(root, "a", "b", "c")
    (root / "base/model.safetensors").write_text("other")
    assert "Running stage 'base_model'" in dvc(root, "repro", "base_model")
    assert set(json.loads(dvc(root, "status", "--json"))) == {f"activation_stats@{choice}" for choice in "abc"}


def test_under_dvc_repro_an_outdated_digest_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(root, "a", "b", "c")
    (root / "base/model.safetensors").write_text("other")
    monkeypatch.setenv("DVC_STAGE", "activation_stats@a")
    with pytest.raises(InputsChanged, match="dvc repro base_model"):
        make(root, "activation_stats@a")


def test_the_link_follows_the_model_that_params_name(root: Path) -> None:
    assert (root / MODEL_LINK).resolve() == root / "base"
    shutil.copytree(root / "base", root / "second")
    (root / "second/config.json").write_text("{}")
    set_params(root, ["a"], model={"name": "second"}, calibrations={"a": CHOICE})
    link_inputs(root)
    assert (root / MODEL_LINK).resolve() == root / "second"
    set_params(root, ["a"], model={"name": "org/model", "revision": "0" * 40}, calibrations={"a": CHOICE})
    link_inputs(root)
    assert (root / MODEL_LINK).read_text() == f"org/model@{'0' * 40}\n"
    assert set(current(root, BASE_MODEL).values()) == {f"org/model@{'0' * 40}"}
    set_params(root, ["a"], model={"name": "llama-stdlib-6m"}, calibrations={"a": CHOICE})
    link_inputs(root)
    assert (root / MODEL_LINK / "config.json").is_file()


def test_only_what_the_grid_names_is_an_input(root: Path) -> None:
    make_all(root, "a", "b", "c")
    names = {f"data/activation_stats/{choice}" for choice in "ab"}
    entry = read_lock(root)["calibration_report"]
    assert set(entry.deps) == names and set(current(root, NAMED_OUTPUTS)["activation_stats"]) == names
    make(root, "activation_stats@c", "another, outside of the grid")
    assert stale(root) == set()
    make(root, "activation_stats@a", "another")
    assert changed_stages(root) == {"calibration_report": ["data/activation_stats/a: changed"]}


def test_what_an_earlier_grid_left_can_be_removed(root: Path) -> None:
    make_all(root, "a", "b", "c")
    set_params(root, ["b"], model={"name": "base"}, calibrations={"b": CHOICE})
    assert changed_stages(root) == {
        "calibration_report": ["data/activation_stats/a: no longer in the grid, or missing"]
    }
    make(root, "calibration_report")
    assert stale(root) == set()
    left = ["data/activation_stats/a", "data/activation_stats/c"]
    assert leftovers(root) == left
    for path in left:
        shutil.rmtree(root / path)
    assert leftovers(root) == [] and stale(root) == set() and verify(root) == []
    assert set(json.loads(dvc(root, "status", "--json"))) <= {"named_outputs"}  # a second's work for `dvc repro`
    assert "Running stage 'calibration_report'" not in dvc(root, "repro")
    clone = root.with_name("clone")
    shutil.copytree(root, clone, ignore=lambda folder, names: {"data", ".plumbline"} & set(names))
    dvc(clone, "checkout")
    assert stale(clone) == set() and json.loads(dvc(clone, "status", "--json")) == {}


def test_a_changed_leftover_stops_nothing_and_a_changed_input_does(root: Path) -> None:
    make_all(root, "a", "b", "c")
    (root / "data/activation_stats/c/file").unlink()
    make(root, "calibration_report")
    (root / "data/activation_stats/a/file").unlink()
    (root / "data/activation_stats/a/file").write_text("tampered")
    with pytest.raises(InputsChanged, match="dvc checkout --force data/activation_stats/a"):
        make(root, "calibration_report")


def test_an_input_that_changes_while_the_step_runs_fails_it(root: Path) -> None:
    make_all(root, "a", "b")
    with (
        pytest.raises(InputsChanged, match="activation_stats/a changed while"),
        recording(root, "calibration_report") as (_, out),
    ):
        (out / "file").write_text("x")
        (root / "data/activation_stats/a/more").write_text("x")


def test_facts_are_files_that_dvc_stores(root: Path) -> None:
    make_all(root, "a", "b", "c")
    lock = read_lock(root)
    for file, stage in FACTS.items():
        if stage in lock:
            assert lock[stage].outs == {file: dvc_digest(root / file)}
