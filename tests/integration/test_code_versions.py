"""Code versions in whole workspaces: they cover what really runs, and a change of the library shows at every door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from plumbline.versioning.code import LIBRARY, Library, builders_of, code_version
from plumbline.versioning.pipeline import assets_with_code
from tests.integration.conftest import SMALL, Workspace

pytestmark = pytest.mark.integration

TRACE = """
import ast, builtins, contextlib, json, os, sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
import dagster, datasets, dvc.repo, matplotlib.figure, mlflow, sentence_transformers, sklearn, torch, transformers

def note_what_runs(library, note):
    # A first statement in each module, class and function of the library, so that no other code is slowed down.
    class Noting(ast.NodeTransformer):
        def __init__(self, path):
            self.call = ast.parse(f"_note({path!r})").body[0]

        def visit_block(self, node):
            self.generic_visit(node)
            futures = [at for at, part in enumerate(node.body) if getattr(part, "module", "") == "__future__"]
            first = futures[-1] + 1 if futures else int(ast.get_docstring(node) is not None)
            node.body.insert(first, self.call)
            return node

        visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = visit_block

        def visit_Lambda(self, node):
            self.generic_visit(node)
            both = ast.Tuple([self.call.value, node.body], ast.Load())
            node.body = ast.Subscript(both, ast.Constant(1), ast.Load())
            return node

    def noting_code(self, name):
        path = Path(self.path)
        if not path.is_relative_to(library):
            return code(self, name)
        tree = Noting(str(path.relative_to(library))).visit(ast.parse(path.read_bytes()))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    code, SourceFileLoader.get_code = SourceFileLoader.get_code, noting_code
    builtins._note = note

def traced_stage(asset, key):
    ran, traced_files = set(), []
    note_what_runs(Path(sys.argv[2]), ran.add)
    from plumbline.graph import step
    from plumbline.graph.materialize import materialize

    recording = step.recording

    @contextlib.contextmanager
    def traced(*arguments):
        with recording(*arguments) as begun:
            ran.clear()
            yield begun
            traced_files.extend(sorted(ran))

    step.recording = traced
    done = materialize(Path.cwd(), asset, key or None)
    assert not done.error, done.error
    print("TRACED", json.dumps([asset, traced_files]), flush=True)

for stage in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if not (child := os.fork()):  # no stage finds modules that another one imported; other packages are there
        traced_stage(*stage)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, stage
"""
PLUMBING = {
    *("versioning", "tracking", "provenance", "graph", "cli", "execution"),
    *("params.py", "workspace.py", "progress.py", "amounts.py", "collector.py", "markdown.py"),
}
"""Packages and modules that run along with a builder, and decide nothing of what it writes."""


def run(workspace: Workspace, library: Path, *arguments: str, check: bool = True) -> str:
    """A command in a workspace, with a copy of the library."""
    environment = {**workspace.environment, "PYTHONPATH": f"{library.parent}{os.pathsep}{workspace.root}"}
    done = subprocess.run(arguments, cwd=workspace.root, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.minutes(3)
def test_a_version_covers_what_a_run_of_the_stage_runs(new_workspace: Callable[..., Workspace]) -> None:
    choice, pair = "random-8", "random-8-w4a16-gptq"
    workspace = new_workspace(
        calibrations={choice: SMALL["calibrations"][choice]},
        grid={"calibrations": [choice], "schemes": ["w4a16-gptq"]},
        studies={"lengths": {**SMALL["studies"]["lengths"], "random_sets": 0}},
    )
    (workspace.root / "requested.yaml").write_text("requested: [lengths]\n")
    (workspace.root / "traced_run.py").write_text(TRACE)
    keys = dict.fromkeys(("calibration_choice", "calibration_set", "activation_stats", "sample_page"), choice)
    keys |= {"quantized_model": pair, "evaluation": pair, "study": "lengths"}
    stages = list(yaml.safe_load((workspace.root / "dvc.yaml").read_text())["stages"])
    assert {*stages} == {"code_versions", "base_model", "named_outputs", *assets_with_code(workspace.root)}
    library, missed = Library(), {}
    wanted = json.dumps([(asset, keys.get(asset, "")) for asset in stages[3:]])
    output = run(workspace, LIBRARY, sys.executable, "traced_run.py", wanted, str(LIBRARY))
    traced = dict(json.loads(line.removeprefix("TRACED")) for line in output.splitlines() if line.startswith("TRACED"))
    for asset in stages[3:]:
        files = [Path(file) for file in traced[asset]]
        assert any(file.parts[0] == asset for file in files)
        modules = library.modules(*builders_of(asset))
        names = {file: ".".join(("plumbline", *file.with_suffix("").parts)).removesuffix(".__init__") for file in files}
        covered = {*library.data(modules), *(str(file) for file, name in names.items() if name in modules)}
        plumbing = {str(file) for file in files if file.parts[0] in PLUMBING}
        missed[asset] = sorted({*map(str, files)} - covered - plumbing)
    assert {asset: names for asset, names in missed.items() if names} == {}


@pytest.mark.minutes(3)
def test_a_changed_constant_shows_at_every_door_and_runs_what_it_changes(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "workspace")
    library = Path(shutil.copytree(LIBRARY, tmp_path / "library" / "plumbline", ignore=shutil.ignore_patterns("*.pyc")))
    python, dvc = (sys.executable, "-m", "plumbline.cli.main"), (sys.executable, "-m", "dvc")
    assets = [name for name in assets_with_code(workspace.root) if name != "study"]

    def stale_in_dvc() -> set[str]:
        return {name.split("@")[0] for name in json.loads(run(workspace, library, *dvc, "status", "--json"))}

    def dagster_versions() -> dict[str, str]:
        script = (
            "import json\nfrom orchestration.definitions import defs\n"
            "graph = defs.resolve_asset_graph()\n"
            "keys = graph.executable_asset_keys\n"
            "print(json.dumps({key.to_user_string(): graph.get(key).code_version for key in keys}))"
        )
        return json.loads(run(workspace, library, sys.executable, "-c", script).splitlines()[-1])

    assert "up to date" in run(workspace, library, *python, "status")
    module = library / "calibration_report" / "bootstrap.py"
    module.write_text(f"# why\n{module.read_text()}")
    assert "up to date" in run(workspace, library, *python, "status")
    assert stale_in_dvc() == {"code_versions"}
    repro = run(workspace, library, *dvc, "repro")
    assert "plumbline code-versions" in repro and "plumbline materialize" not in repro
    assert stale_in_dvc() == set()

    before = dagster_versions()
    module.write_text(f"{module.read_text()}\nNEW = 1\n")
    changed = {name for name in assets if code_version(name, Library(library)) != code_version(name)}
    assert changed == {"calibration_report", "deployed_model"}
    status = run(workspace, library, *python, "status", "--all", check=False)
    assert {line for line in status.splitlines() if line in assets} == changed
    assert status.count("the code changed") == len(changed)
    after = dagster_versions()
    assert {name for name in assets if after[name] != before[name]} == changed
    repro = run(workspace, library, *dvc, "repro")
    ran = {line.split()[-1] for line in repro.splitlines() if "plumbline materialize" in line}
    assert ran == changed
    assert stale_in_dvc() == set() and "up to date" in run(workspace, library, *python, "status")
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]
    for name in changed:
        assert lock[name]["params"]["data/code_versions.yaml"] == {name: after[name]}
