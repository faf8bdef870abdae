"""Jobs in other processes: results in order, errors as they are, workers that die."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from filelock import FileLock, Timeout

from plumbline.execution import ray_cluster
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import share_out, shares_out
from plumbline.execution.worker_check import checked_workers

WORK = """
import os, signal, time
from pathlib import Path
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import shares_out

def square(job):
    return job * job, os.getpid(), os.environ["OMP_WAIT_POLICY"], shares_out(ExecutionParams(workers=2))

def fail(job):
    if job == 3:
        raise KeyError("job three")
    return job

def die_once(job):
    number, folder = job
    if number == 2 and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def die(job):
    os.kill(os.getpid(), signal.SIGKILL)

def refuse():
    raise RuntimeError("another torch")

def accept():
    pass

def fail_or_stay(job):
    number, folder = job
    if number == 1:
        raise KeyError("job one")
    (Path(folder) / f"{number} began").touch()
    end = time.monotonic() + 40
    while time.monotonic() < end:
        time.sleep(0.05)
    (Path(folder) / f"{number} ended").touch()

def wait(job):
    if job:
        os.write(1, f"{job} {os.getpid()}\\n".encode())  # in one piece, unlike print without a buffer
        signal.pause()
"""
PARENT = """
import os, sys
from plumbline.execution.params import ExecutionParams
from plumbline.execution.share_out import share_out
from work_of_a_test import wait

def fork(job):
    if not os.fork():
        wait("fork")

if __name__ == "__main__":
    share_out(wait, [0, "worker", "worker"], ExecutionParams(workers=2), fork if "fork" in sys.argv else abs)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Functions that another process can import."""
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("work_of_a_test")


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.integration)])
def execution(request: pytest.FixtureRequest) -> ExecutionParams:
    if request.param == "ray":
        pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    return ExecutionParams(executor=request.param, workers=2)


def test_results_come_in_order_from_other_processes(work: Any, execution: ExecutionParams) -> None:
    done: list[int] = []
    results = share_out(work.square, [5, 4, 3, 2], execution, done.append)
    assert [result[0] for result in results] == [25, 16, 9, 4]
    assert sorted(done) == [2, 3, 4, 5]
    assert os.getpid() not in {result[1] for result in results}
    assert {result[2] for result in results} == {"PASSIVE"}
    assert not any(result[3] for result in results), "a worker shares out nothing in its turn"
    assert shares_out(execution)
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_an_error_is_the_one_that_was_raised(work: Any, execution: ExecutionParams) -> None:
    with pytest.raises(KeyError, match="job three"):
        share_out(work.fail, [1, 2, 3], execution)


def test_a_worker_runs_the_check_of_the_context_before_a_job(work: Any, execution: ExecutionParams) -> None:
    with checked_workers(work.accept):
        assert share_out(work.fail, [1, 2], execution) == [1, 2]
    with checked_workers(work.refuse), pytest.raises(RuntimeError, match="another torch"):
        share_out(work.fail, [3], execution)
    assert share_out(work.fail, [1], execution) == [1]


@pytest.mark.integration
def test_when_a_job_fails_the_others_on_a_cluster_are_cancelled(work: Any, tmp_path: Path) -> None:
    """They would keep its workers from whatever is shared out next."""
    pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    execution = ExecutionParams(executor="ray", workers=2)
    with ray_cluster.kept():  # as a cluster stays
        with pytest.raises(KeyError, match="job one"):
            share_out(work.fail_or_stay, [(number, str(tmp_path)) for number in range(6)], execution)
        assert share_out(work.fail, [1, 2], execution) == [1, 2]
        assert list(tmp_path.glob("* ended")) == []


@pytest.mark.parametrize("failures", range(ray_cluster.STARTS + 1))
def test_ray_is_started_some_times_before_it_is_said_that_it_does_not(failures: int) -> None:
    calls: list[str] = []

    def init(**options: Any) -> None:
        calls.append("init")
        if calls.count("init") <= failures:
            raise Exception("The current node timed out during startup.\nand more")

    ray = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    if failures == ray_cluster.STARTS:
        with pytest.raises(RuntimeError, match=r"Ray does not start .* \(The current node .* startup\.\);"):
            ray_cluster._start(ray, 2, {})
    else:
        ray_cluster._start(ray, 2, {})
    assert calls == (["init", "shutdown"] * ray_cluster.STARTS)[: 2 * failures + 1]


def test_two_processes_do_not_start_ray_together() -> None:
    """Each would take the other's processors, fail in Ray's 30 seconds, and try again together with the other."""

    def init(**options: Any) -> None:
        with pytest.raises(Timeout), FileLock(ray_cluster.lock_of_starts(), timeout=0):
            pass

    ray_cluster._start(SimpleNamespace(init=init), 2, {})


def test_what_ray_reports_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    report = "A worker died or was killed by an unexpected system error. To troubleshoot" + " the problem" * 99
    ray_cluster._log_report({"lines": [report], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert caplog.messages == ["Ray: A worker died or was killed by an unexpected system error"]
    assert capsys.readouterr().out == ""


def test_a_job_whose_worker_was_killed_runs_again(work: Any, execution: ExecutionParams, tmp_path: Path) -> None:
    jobs = [(number, str(tmp_path)) for number in range(4)]
    assert share_out(work.die_once, jobs, execution) == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


def test_a_job_that_kills_every_worker_is_named(work: Any, execution: ExecutionParams) -> None:
    with pytest.raises(RuntimeError, match="job 1 of 1: its worker died 2 times .* execution.workers in params.yaml"):
        share_out(work.die, [0], execution)


@pytest.mark.parametrize("forks", [0, 1], ids=["alone", "and a fork of it lives on"])
def test_workers_end_when_their_parent_is_killed(work: Any, tmp_path: Path, forks: int) -> None:
    """They would compute for nobody, hold their memory, and write into the folders of the next run."""
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", *["fork"] * forks]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        started: list[tuple[str, psutil.Process]] = []
        try:
            lines = (line.split() for line in parent.stdout)
            started += [(kind, psutil.Process(int(pid))) for kind, pid in islice(lines, 2 + forks)]
            assert sorted(kind for kind, _ in started) == ["fork"] * forks + ["worker"] * 2
            parent.kill()
            _, alive = psutil.wait_procs([process for kind, process in started if kind == "worker"], timeout=600)
        finally:
            parent.kill()
            for _, process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert not alive
