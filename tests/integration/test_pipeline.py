"""The whole graph on a small workspace, through both doors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from plumbline.versioning.facts import FACTS
from tests.helpers.workspace import Workspace, stale

pytestmark = pytest.mark.integration


def test_a_run_leaves_both_doors_satisfied_and_a_second_one_shows_the_table(
    finished: Workspace, tmp_path: Path
) -> None:
    workspace = finished.copy(tmp_path / "both")  # other workers copy the finished one meanwhile
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert stale(workspace) == {}
    shown = workspace.plumbline("run").stdout
    assert "everything is up to date" in shown
    for word in (
        "random-8",
        "stratified-8",
        "w8a8-minmax",
        "w4a16-gptq",
        "KL",
        "report.html",
        "plumbline ui",
        "plumbline mlflow",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_push_ships_everything_and_pull_brings_it_back(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "pushed")
    workspace.dvc("remote", "add", "-d", "store", str(tmp_path / "store"))
    workspace.dvc("push")
    shutil.rmtree(workspace.root / "data")
    shutil.rmtree(workspace.root / ".dvc/cache")
    workspace.dvc("pull")
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert "every artifact" in workspace.plumbline("verify").stdout


def test_a_new_choice_runs_its_own_steps_only(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "choice")
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    params["calibrations"]["random-9"] = {"strategy": "random", "n": 9, "seed": 1}
    params["grid"]["calibrations"].append("random-9")
    workspace.set_params(**params)
    before = workspace.lock()
    workspace.plumbline("run")
    after = workspace.lock()
    added = {path for path in after if path not in before}
    assert {path.split("/")[-1] for path in added} == {"random-9", "random-9-w8a8-minmax", "random-9-w4a16-gptq"}
    changed = {path for path in before if before[path] != after[path]}
    assert changed - {"data/deployed_model"} == {"data/calibration_report", "data/named_outputs.yaml"}
    assert stale(workspace) == {}


@pytest.mark.minutes(4)
def test_dvc_repro_leaves_dagster_nothing_stale(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "repro")
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    params["calibrations"]["random-8"]["seed"] = 7
    workspace.set_params(**params)
    workspace.dvc("repro")
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert stale(workspace) == {}
    told = workspace.plumbline("audit", "data/quantized_model/random-8-w4a16-gptq", check=False)
    assert told.returncode == 0, told.stdout  # DVC writes a stage's entry only after its command has registered it


def test_what_dvc_restores_without_running_is_reported(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "reconcile")
    for path in (workspace.root / ".dagster").iterdir():
        if path.name != "dagster.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    artifacts = workspace.lock().keys() - FACTS.keys()  # which are no assets
    assert len(stale(workspace)) == len(artifacts)
    workspace.plumbline("reconcile")
    assert stale(workspace) == {}
    assert "has every artifact" in workspace.plumbline("reconcile").stdout


OVERRIDE = """
import dagster as dg
from orchestration.definitions import ASSETS
from orchestration.resources import RESOURCES
from plumbline.graph.instance import instance
with instance() as history:
    [choice] = [a for a in ASSETS if a.key == dg.AssetKey("calibration_choice")]
    config = {"ops": {"calibration_choice": {"config": {"n": 5}}}}
    dg.materialize([choice], instance=history, partition_key="random-8", run_config=config, resources=RESOURCES)
"""


def test_a_launch_time_override_is_recorded_and_followed(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "override")
    workspace.command("python", "-c", OVERRIDE)
    choice = json.loads((workspace.root / "data/calibration_choice/random-8/choice.json").read_text())
    assert choice["n"] == 5
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]["calibration_choice@random-8"]
    assert lock["params"]["params.yaml"]["calibrations.random-8"]["n"] == 5
    assert set(stale(workspace)) == {"calibration_set random-8"}
    assert "params.yaml" in workspace.dvc("status", "calibration_choice@random-8").stdout


def test_audit_verifies_the_chain_and_names_what_was_tampered_with(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "audit")
    model = "data/quantized_model/random-8-w4a16-gptq"
    assert workspace.plumbline("audit", model).returncode == 0
    targets = ("model.safetensors", "calibration.json", "../../calibration_set/random-8/samples.parquet")
    for target in targets:
        path = (workspace.root / model / target).resolve()
        content = path.read_bytes()
        path.chmod(0o644)
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        done = workspace.plumbline("audit", model, check=False)
        assert done.returncode == 1 and "tampered" in done.stdout.lower(), target
        path.write_bytes(content)
    assert workspace.plumbline("audit", model).returncode == 0


@pytest.mark.parametrize(
    "change", [{"grid": {"calibrations": ["nobody"], "schemes": []}}, {"tokenize": {"max_length": "x"}}]
)
def test_wrong_params_are_explained_before_anything_runs(
    new_workspace: Callable[..., Workspace], change: dict[str, object]
) -> None:
    done = new_workspace(**change).plumbline("run", check=False)
    assert done.returncode == 1
    assert "params.yaml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.minutes(4)
def test_a_study_runs_on_request_alone(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "study")
    page = workspace.root / "data/study/lengths/study.html"
    shown = workspace.plumbline("study").stdout
    assert "▸ study lengths" in shown and str(page.relative_to(workspace.root)) in shown
    assert page.is_file() and max(map(len, shown.splitlines())) <= 120
    assert "everything is up to date" in workspace.plumbline("study", "lengths").stdout
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert stale(workspace) == {}

    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    workspace.set_params(studies={"lengths": {**params["studies"]["lengths"], "confidence": 0.9}})
    assert "everything is up to date" in workspace.plumbline("run").stdout
    told = workspace.plumbline("status").stdout
    assert "everything is up to date" in told and "studies.lengths changed" in told
    results = workspace.root / ".plumbline/study"
    before = sorted(results.iterdir())
    assert "1 step in" in workspace.plumbline("study").stdout
    assert sorted(results.iterdir()) == before  # judged anew, not measured
    verdict = json.loads((page.parent / "verdict.json").read_text())
    (answer,) = verdict["representativeness"]["by_scheme"]
    assert {"token_jsd", "log_length_ks", "embedding_energy"} <= {entry["metric"] for entry in answer["metrics"]}
