"""The audit of a workspace that the pipeline itself made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from plumbline.artifact import sha256_file
from plumbline.cli.main import main
from tests.helpers.workspace import Workspace

pytestmark = pytest.mark.integration

CHAMPION = "models:/plumbline@champion"


def test_the_champion_is_audited_reproduced_and_restored_after_all_has_moved_on(
    finished: Workspace, tmp_path: Path
) -> None:
    workspace = finished.copy(tmp_path / "audited")
    told = json.loads(workspace.plumbline("audit", CHAMPION, "--json").stdout)
    assert told["verdict"] == "verified" and told["links"][0]["name"] == "registry"

    # every step again in a clean place
    done = workspace.plumbline("audit", CHAMPION, "--reproduce", "--json")
    made = json.loads(done.stdout)["reproduced"]
    assert made["same"] and made["start"] == "from the sources on"
    model = made["artifacts"][-1]
    assert len(made["artifacts"]) == 7 and model["expected"] == finished.lock()[model["path"]]

    # the choices, and with them every set, become others
    choice = told["about"]["choice"]["name"]
    wanted = {path: md5 for path, md5 in finished.lock().items() if path.endswith(f"/{choice}")}
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    for each in params["calibrations"].values():
        each["seed"] = 5
    workspace.set_params(**params)
    workspace.plumbline("run", *(f"--only={a}" for a in ("calibration_choice", "calibration_set", "activation_stats")))
    assert workspace.lock()[f"data/calibration_set/{choice}"] != wanted[f"data/calibration_set/{choice}"]
    done = workspace.plumbline("audit", CHAMPION, "--restore", str(tmp_path / "back"))
    assert "from DVC's cache" in " ".join(done.stdout.split())
    restored = json.loads((tmp_path / "back" / "restored.json").read_text())["dvc"]
    assert restored == {p: m for p, m in wanted.items() if p.split("/")[1] not in ("study", "sample_page")}

    documents = json.loads((tmp_path / "back/data/calibration_choice" / choice / "choice.json").read_text())
    assert documents["seed"] == 0
    assert workspace.plumbline("log").returncode == 0
    done = workspace.plumbline("affected", "texts", "--json", check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert {each["now"] for each in found["sets"] if each["name"] == choice} == {True, False}
    assert any("@champion" in version for version in found["deployments"])
    shutil.rmtree(workspace.root / ".dvc/cache/files")
    assert workspace.plumbline("audit", CHAMPION, check=False).returncode == 1


def content(root: Path) -> dict[str, str]:
    """Digest, link or kind of everything but memos of digests and DVC's locks, which hold no record."""
    kept = {".plumbline", ".dvc/tmp"}
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not any(name == folder or name.startswith(f"{folder}/") for folder in kept):
            found[name] = str(path.readlink()) if path.is_symlink() else sha256_file(path) if path.is_file() else ""
    return found


def test_a_command_that_reads_changes_nothing(finished: Workspace, tmp_path: Path) -> None:
    """In a workspace that was moved, so that the locations in its registry are of another place."""
    root = finished.copy(tmp_path / "moved").root
    choices = sorted(path.name for path in (root / "data/calibration_set").iterdir())
    models = sorted(path.as_posix() for path in (root / "data/quantized_model").iterdir())
    commands = [
        ["status", "--all"],
        ["run", "--plan"],
        ["verify"],
        ["audit", CHAMPION],
        ["audit", models[0], "--json"],
        ["audit", "--explain"],
        ["show", choices[0]],
        ["affected", "corpus"],
        ["diff", models[0], models[-1]],
        ["log"],
        ["gc", "--dry"],
    ]
    before = content(root)
    for command in commands:
        environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster"), "MLFLOW_TRACKING_URI": None}
        result = CliRunner().invoke(main, command, env=environment)
        assert isinstance(result.exception, SystemExit | None), (command, result.exception)
        assert content(root) == before, command
