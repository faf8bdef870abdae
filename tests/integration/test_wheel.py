"""Plumbline as its users have it: a wheel in a virtual environment of its own, the checkout out of reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.workspace_template import FOLDER, files_of
from tests.helpers.shared import made_once
from tests.helpers.workspace import SMALL_FEATURES

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
CHAMPION = "models:/plumbline@champion"
PLUMBLINE = ("python", "-m", "plumbline")
"""The command in a copied environment, whose scripts name the Python of the original."""
SMALL: dict[str, Any] = {
    "corpus": {"sources": {}, "inbox": "inbox"},
    "tokenize": {"max_length": 128, "long_documents": "window", "splits": {"tuning": 0.2, "report": 0.2}},
    "features": SMALL_FEATURES,
    "calibrations": {"random-8": {"strategy": "random", "n": 8, "seed": 0}},
    "schemes": {"w4a16-gptq": {"method": "gptq", "weight_bits": 4, "group_size": 128}},
    "grid": {"calibrations": ["random-8"], "schemes": ["w4a16-gptq"]},
    "evaluation": {"tokens_per_domain": 512},
    "report": {"resamples": 200, "confidence": 0.95},
    "deployment": {"scheme": "w4a16-gptq"},
    "studies": {},
}


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel; the packages that it depends on are those of this one."""

    folder: Path

    @property
    def package(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)})) / "plumbline"

    @property
    def environment(self) -> dict[str, str]:
        ours = ("PYTHONPATH", "PLUMBLINE_ROOT", "DAGSTER_HOME", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(self, cwd: Path, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment.

        Raises:
            AssertionError: its exit status is another one.
        """
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run([program, *command[1:]], cwd=cwd, env=self.environment, capture_output=True, text=True)
        shown = f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == status, shown
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built as for an index: a source distribution from the checkout, and from that a wheel."""
    return Installed(made_once(tmp_path_factory, "wheel", install) / "venv")


def install(folder: Path) -> None:
    """Make the environment."""
    environment = Installed(folder / "venv")
    subprocess.run([sys.executable, "-m", "venv", environment.folder], check=True)
    pip = ("python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    environment.run(folder, *pip, "setuptools>=77")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    environment.run(PROJECT, "python", "-c", build)
    [source] = folder.glob("plumbline_ptq-*.tar.gz")
    environment.run(folder, *pip, "--no-deps", "--no-build-isolation", "--no-index", str(source))
    # A path in a .pth file comes after the environment's own packages, and the .pth files there are not read: the
    # editable Plumbline of this environment stays out of reach.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (environment.package.parent / "dependencies.pth").write_text("\n".join(sorted(packages)) + "\n")


@pytest.fixture(scope="module")
def workspace(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace by `plumbline init`, with texts in its inbox and a grid of one model, on which a run has run."""

    def make(folder: Path) -> None:
        init_and_run(installed, folder)

    return made_once(tmp_path_factory, "user", make) / "W"


def init_and_run(installed: Installed, folder: Path) -> None:
    """Make the workspace."""
    installed.run(folder, "plumbline", "init", "W")
    root = folder / "W"
    params = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump({**params, **SMALL}, sort_keys=False))
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: -path.stat().st_size)
    for module in modules[:24]:
        (root / "inbox" / f"{module.stem}.txt").write_text(module.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    installed.run(root, "plumbline", "run")


def outdated(installed: Installed, root: Path) -> set[str]:
    """The assets of which `plumbline status` calls a stage out of date."""
    lines = installed.run(root, *PLUMBLINE, "status", "--all", status=1).stdout.splitlines()
    return {line.split("@")[0] for line in lines if not line.startswith(" ") and "out of date" not in line}


def test_the_wheel_holds_plumbline_alone_with_its_data(installed: Installed, tmp_path: Path) -> None:
    ask = (
        "import importlib.metadata, json, plumbline, plumbline.kernels; "
        "d = importlib.metadata.distribution('plumbline-ptq'); "
        "print(json.dumps([plumbline.__file__, d.version, sorted({str(f).split('/')[0] for f in d.files})]))"
    )
    file, version, names = json.loads(installed.run(tmp_path, "python", "-c", ask).stdout)
    assert Path(file) == installed.package / "__init__.py"
    assert [name for name in names if name not in ("..", f"plumbline_ptq-{version}.dist-info")] == ["plumbline"]
    assert installed.run(tmp_path, "plumbline", "--version").stdout == f"plumbline {version}\n"
    sources = PROJECT / "plumbline"
    files = [path.relative_to(sources) for path in sources.rglob("*") if path.is_file()]
    files = [name for name in files if "__pycache__" not in name.parts and name.suffix != ".so"]
    assert Path("base_model/llama-stdlib-6m/chat_template.jinja") in files
    assert all((installed.package / name).read_bytes() == (sources / name).read_bytes() for name in files)
    assert files_of(installed.package / FOLDER) == files_of(PROJECT)


def test_the_checkout_is_out_of_reach_and_needs_a_workspace(installed: Installed, tmp_path: Path) -> None:
    for command in (["status"], ["run"], ["audit", CHAMPION], ["schemes"], ["log"]):
        done = installed.run(tmp_path, "plumbline", *command, status=2)
        assert "is not in a Plumbline workspace" in done.stderr and not done.stdout
    assert "length_stratified" in installed.run(tmp_path, "plumbline", "strategies").stdout
    missing = "import plumbline.distribution as d; print(d.install_command('signing'))"
    assert installed.run(tmp_path, "python", "-c", missing).stdout == "pip install 'plumbline-ptq[signing]'\n"


def test_the_graph_runs_in_a_new_workspace_and_both_doors_see_it(
    installed: Installed, workspace: Path, tmp_path: Path
) -> None:
    assert "everything is up to date" in installed.run(workspace, "plumbline", "status").stdout
    assert "up to date" in installed.run(workspace, "python", "-m", "dvc", "status").stdout
    assert (
        json.loads(installed.run(workspace, "plumbline", "audit", CHAMPION, "--json").stdout)["verdict"] == "verified"
    )
    away = installed.run(tmp_path, "plumbline", "-C", str(workspace), "status")
    assert "everything is up to date" in away.stdout and away.stderr == f"workspace: {workspace}\n"
    notebook = "import plumbline; print(len(plumbline.choose('data', 'embedding_cluster', n=4)))"
    assert installed.run(workspace, "python", "-c", notebook).stdout == "4\n"


def test_an_upgrade_makes_exactly_the_stages_out_of_date_whose_code_changed(
    installed: Installed, workspace: Path, tmp_path: Path
) -> None:
    shutil.copytree(installed.folder, tmp_path / "venv", symlinks=True)  # other workers use this one
    shutil.copytree(workspace, tmp_path / "W", symlinks=True)
    upgraded, root = Installed(tmp_path / "venv"), tmp_path / "W"
    file = upgraded.package / "quantized_model" / "gptq.py"
    before = file.read_text()
    upgraded.run(root, *PLUMBLINE, "run")  # takes in the copied inbox, and computes nothing
    file.write_text(before.replace("from __future__", "# A comment changes nothing.\nfrom __future__", 1))
    assert "everything is up to date" in upgraded.run(root, *PLUMBLINE, "status").stdout
    file.write_text(before + "\nANOTHER_CONSTANT = 1\n")
    # A choice checks the options of the strategies, some of which quantize to score a set.
    assert outdated(upgraded, root) == {"calibration_choice", "calibration_set", "quantized_model"}
    file.write_text(before)
    assert "everything is up to date" in upgraded.run(root, *PLUMBLINE, "status").stdout
