"""A grid shared out to workers: the same bytes as in one process, whoever computes and whoever is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.graph.shared_steps import SHARED
from tests.helpers.workspace import Workspace

pytestmark = pytest.mark.integration

KILL = """
        import os
        if "PLUMBLINE_WORKERS" in os.environ and not (step.root / "killed").exists():
            (step.root / "killed").touch()
            os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two machines, played by processes."""
    pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def emptied(finished: Workspace, target: Path, **execution: object) -> Workspace:
    """A copy of a finished workspace without what workers share out."""
    workspace = finished.copy(target)
    for asset in SHARED:
        shutil.rmtree(workspace.root / "data" / asset)
    workspace.set_params(execution=execution)
    return workspace


def test_a_cluster_computes_the_same_bytes_and_a_killed_worker_is_replaced(
    finished: Workspace, tmp_path: Path, cluster: str
) -> None:
    workspace = emptied(finished, tmp_path / "cluster", executor="ray", address=cluster)
    path = workspace.root / "assets/quantized_model.py"
    body = "        calibration, scheme = split_pair(key)\n"
    assert body in path.read_text()
    path.write_text(path.read_text().replace(body, KILL + body))
    said = workspace.plumbline("run").stdout
    assert (workspace.root / "killed").exists()
    assert workspace.lock() == finished.lock()
    pairs = "random-8-w8a8-minmax … stratified-8-w4a16-gptq (4)"
    assert f"quantized_model {pairs}, shared out to Ray at {cluster}\n" in said
    assert "s: 4 on " in said and max(map(len, said.splitlines())) <= 140, said
    nodes = {node for node, _ in json.loads((workspace.root / ".plumbline/places.json").read_text()).values()}
    assert len(nodes) == 2, "both machines worked"
    assert list((workspace.root / ".plumbline/built").iterdir()) == []
    assert "everything is up to date" in workspace.plumbline("run").stdout
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."


@pytest.mark.parametrize("executor", [pytest.param("local", marks=pytest.mark.long), "ray"])
def test_two_processes_compute_the_same_bytes(finished: Workspace, tmp_path: Path, executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    workspace = emptied(finished, tmp_path / executor, executor=executor, workers=2)
    workspace.plumbline("run")
    assert workspace.lock() == finished.lock()


def test_a_cluster_that_does_not_answer_is_said_before_the_first_step(finished: Workspace, tmp_path: Path) -> None:
    workspace = emptied(finished, tmp_path / "silent", executor="ray", address="127.0.0.1:9")
    ended = workspace.plumbline("run", check=False)
    assert ended.returncode == 1 and "found before the first step; nothing was run" in ended.stderr
    assert "execution.address in params.yaml: found '127.0.0.1:9'" in ended.stderr
    assert not (workspace.root / "data/calibration_set").exists()
