"""`execution:` in params.yaml, and what is known of an executor before work."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.execution.params import ExecutionParams
from plumbline.execution.probe import problem
from plumbline.execution.ray_cluster import cpus_of_job
from plumbline.execution.share_out import require_executor


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"workers": 0}, "greater than or equal to 1"),
        ({"workers": -1, "executor": "ray"}, "greater than or equal to 1"),
        ({"executor": "dask"}, "'local' or 'ray'"),
        ({"address": "auto"}, "executor is 'local'; write `executor: ray`"),
        ({"executor": "ray", "address": ""}, "at least 1 character"),
    ],
)
def test_a_wrong_executor_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExecutionParams.model_validate(wrong)


@pytest.mark.parametrize(
    ("given", "shared", "said"),
    [
        ({}, False, "1 local process"),
        ({"workers": 2}, True, "2 local processes"),
        ({"executor": "ray"}, True, "1 Ray worker"),
        ({"executor": "ray", "workers": 3}, True, "3 Ray workers"),
        ({"executor": "ray", "address": "auto"}, True, "Ray at auto"),
    ],
)
def test_who_computes_is_said(given: dict[str, Any], shared: bool, said: str) -> None:
    execution = ExecutionParams.model_validate(given)
    assert (execution.shares_out, str(execution)) == (shared, said)


def test_ray_that_is_not_installed_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for address in (None, "auto"):
        with pytest.raises(ValueError, match=r"found 'ray', but Ray is not installed; .* '.\[ray\]'`, or say 'local'"):
            require_executor(ExecutionParams(executor="ray", address=address))
    assert problem(ExecutionParams()) == ""


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere", "expected HOST:PORT"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
        ("auto", "this machine runs none"),
        ("closed", "Connection refused"),
    ],
)
def test_a_cluster_that_does_not_answer_is_said_before_work(
    address: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address == "closed":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
    said = problem(ExecutionParams(executor="ray", address=address))
    assert said.startswith(f"execution.address in params.yaml: found {address!r}") and reason in said
    assert "`ray start --head`" in said


def test_a_cluster_that_answers_has_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert problem(ExecutionParams(executor="ray", address=address)) == ""
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")
        assert problem(ExecutionParams(executor="ray", address="auto")) == ""


@pytest.mark.parametrize(
    ("sizes", "workers", "expected"),
    [([8, 8], 1, 8), ([8, 16], 2, 4), ([0, 6], 1, 6), ([3], 4, 1), ([], 1, 1)],
)
def test_a_job_asks_for_its_share_of_the_smallest_machine(sizes: list[int], workers: int, expected: int) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(size)} if size else {}} for size in sizes]
    nodes.append({"Alive": False, "Resources": {"CPU": 1.0}})
    assert cpus_of_job(nodes, workers) == expected
