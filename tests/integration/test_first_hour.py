"""The first hour of a new user: the commands of README.md and the tutorials, pasted, on a tiny model and some chats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from tests.helpers.paths import BIN, PROJECT
from tests.helpers.shared import made_once
from tests.helpers.small_model import CHAT_TEMPLATE, WORDS, write_base_model
from tests.helpers.snippets import Snippet, marked
from tests.helpers.workspace import Workspace

pytestmark = pytest.mark.integration

SETUP = "make setup && source .venv/bin/activate"
"""The tests run in an environment that is set up."""
ORDER = ("README.md", "docs/tutorials/own-model.md", "docs/tutorials/audit.md", "docs/tutorials/first-run.md")


def test_four_commands_and_no_edit_lead_to_a_verdict() -> None:
    (readme,) = [block for block in marked("run", "first hour") if block.page == "README.md"]
    (tutorial,) = [block for block in marked("run", "first hour") if block.page != "README.md"]
    assert readme.commands[0] == SETUP and len(readme.commands) - 1 == 4  # one of them is optional
    assert set(tutorial.commands) < set(readme.commands)  # so that running one runs both


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's commands were run: `checkout` is the current folder, `support` the workspace."""
    return made_once(tmp_path_factory, "first_hour", first_hour)


def first_hour(place: Path) -> None:
    write_base_model(place / "model", CHAT_TEMPLATE)
    (place / "chats").mkdir()
    (place / "checkout").mkdir()
    random = Random(0)
    rows = [
        {
            "messages": [
                {"role": role, "content": " ".join(random.choices(WORDS, k=30))} for role in ("user", "assistant")
            ]
        }
        for _ in range(45)
    ]
    (place / "chats/support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (block,) = [block for block in marked("run", "first hour") if block.page == "README.md"]
    paste(place, place / "checkout", block)


def paste(place: Path, cwd: Path, *blocks: Snippet) -> str:
    """Run blocks in a shell that stops at the first failure, with the paths of this test."""
    lines = [command for block in blocks for command in block.commands if command != SETUP]
    script = "\n".join(["set -e", *lines])
    for shown, real in {"/models/llama": place / "model", "/data/chats": place / "chats"}.items():
        script = script.replace(shown, str(real))
    script = script.replace("-64", "-8").replace("-128", "-8")  # the size that suits 45 chats
    environment = {name: value for name, value in os.environ.items() if name not in ("PLUMBLINE_ROOT", "DAGSTER_HOME")}
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_run_says_first_what_it_does_and_then_the_verdict(place: Path) -> None:
    root = place / "support"
    table = json.loads((root / "data/calibration_report/table.json").read_text())
    assert {row["calibration"] for row in table} == {"random-8", "stratified-8", "clusters-8"}
    assert json.loads((root / "data/deployed_model/promotion.json").read_text())["decision"] == "promoted"
    rates = json.loads((root / ".plumbline/rates.json").read_text())
    assert set(rates) >= {"raw_corpus", "sample_features", "evaluation"}  # the next forecast is corrected


@pytest.mark.minutes(3)
def test_the_tutorials_go_on_from_there(place: Path, tmp_path: Path) -> None:
    root = Workspace(place / "support").copy(tmp_path / "support").root  # the other tests read it as it was
    blocks = sorted(marked("run after", "first hour"), key=lambda block: (ORDER.index(block.page), block.line))
    *most, change = blocks
    output = paste(place, root, *most)
    assert "nothing to do" in output and "VERIFIED" in output and (root / "audit.html").is_file()
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["calibrations"]["coverage-8"] = {"strategy": "token_coverage", "n": 8, "seed": 0}
    params["grid"]["calibrations"].append("coverage-8")
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    output = paste(place, root, change)
    plan, run = output.split("▸", 1)
    assert "raw_corpus" not in plan and "quantized_model           2" in plan
    assert "coverage-8" in run and "sample_features" not in run


def test_the_set_opens_in_python(place: Path) -> None:
    (block,) = marked("run", "calibration-set")
    text = block.text.replace("-64", "-8")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", text], cwd=place / "support", env=environment, check=True)
