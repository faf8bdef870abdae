"""The audit of a workspace that the pipeline itself made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

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
