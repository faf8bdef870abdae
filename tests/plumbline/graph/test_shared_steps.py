"""Steps that workers compute: who is asked, what comes back, what fails, and what is ready under `dvc repro`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from plumbline.execution.params import ExecutionParams
from plumbline.graph import shared_steps
from plumbline.graph.shared_steps import (
    Failed,
    StepFailed,
    StepJob,
    WorkerFault,
    compute,
    is_shared,
    near,
    ready,
    shown,
)
from plumbline.versioning import same_code
from plumbline.versioning.built import Built, is_built, take
from plumbline.versioning.pipeline import Stage
from plumbline.versioning.recording import InputsChanged, Step
from plumbline.versioning.same_code import RecordedCode
from plumbline.versioning.scratch import parts_of

TWO = ExecutionParams(workers=2)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step("evaluation@a", tmp_path, {}, "", {}, tmp_path / "out", None)


@pytest.fixture
def worker(step: Step, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], Built | Failed]:
    """Has this process compute the step as a worker, with a builder of the test's own."""

    def work(build: Callable[[Path], object]) -> Built | Failed:
        monkeypatch.setattr(shared_steps, "_build", lambda job, out: build(out))
        code = RecordedCode("evaluation", step.code_version, step.root)
        return compute(StepJob(step, "evaluation", "a", {}, 1, code))

    monkeypatch.setenv("PLUMBLINE_ROOT", "")
    return work


def test_what_a_worker_wrote_and_said_comes_back(step: Step, worker: Any, tmp_path: Path) -> None:
    def build(out: Path) -> None:
        (out / "file").write_text("made")
        logging.getLogger("plumbline.anything").warning("a fallback")

    built = worker(build)
    assert isinstance(built, Built) and built.said == ((logging.WARNING, "a fallback"),) and built.size == 4
    (folder := tmp_path / "folder").mkdir()
    assert take(step, folder) == built and (folder / "file").read_text() == "made"


def test_a_worker_is_alone_with_its_step_and_leaves_no_parts(step: Step, worker: Any) -> None:
    parts, lock = parts_of(step.root, step.name), step.root / ".plumbline" / "locks" / f"{step.name}.lock"

    def build(out: Path) -> None:
        (parts / "layer").mkdir(parents=True)
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)

    assert isinstance(worker(build), Built) and not parts.exists()
    failed = worker(lambda out: [parts.mkdir(), [][1]])
    assert isinstance(failed, Failed) and parts.is_dir()  # the next one goes on from there


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, InputsChanged, OSError])
def test_what_a_worker_raised_is_a_sentence(step: Step, worker: Any, kind: type[Exception]) -> None:
    code = compile("def fail(out):\n    raise kind('n is 9; lower it')", "plumbline/somewhere.py", "exec")
    scope: dict[str, Any] = {"kind": kind, "__name__": "plumbline.somewhere"}
    exec(code, scope)
    failed = worker(scope["fail"])
    assert failed == Failed("n is 9; lower it", is_expected=True) and not is_built(step)
    assert isinstance(failed.error(), StepFailed)


def test_a_fault_of_the_library_comes_with_its_stack(step: Step, worker: Any) -> None:
    failed = worker(lambda out: [][1])
    assert isinstance(failed, Failed) and not failed.is_expected
    assert isinstance(failed.error(), WorkerFault) and "IndexError" in failed.message and "line" in failed.message


def test_a_worker_with_other_code_refuses(step: Step, worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step.code_version = "recorded"
    monkeypatch.setattr(same_code, "code_version", lambda asset, library: "another")
    failed = worker(lambda out: pytest.fail("it computed"))
    assert "another version of the code of evaluation" in failed.message and failed.is_expected


def test_a_job_goes_where_its_largest_input_lies() -> None:
    places = {"set": ("node-a", 10), "stats": ("node-b", 1000), "other": ("node-c", 10**9)}
    assert near(places, {"data/calibration_set/x": "set", "data/activation_stats/x": "stats"}) == "node-b"
    assert near(places, {"data/calibration_set/x": "set", "data/tokenized_samples": "unknown"}) == "node-a"
    assert near(places, {"data/tokenized_samples": "unknown"}) == "" and near({}, {}) == ""


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"a": ["n"]}'])
def test_a_damaged_note_of_places_is_none(damage: str, tmp_path: Path) -> None:
    (tmp_path / ".plumbline").mkdir()
    shared_steps._write_places(tmp_path, {"a": ("node", 3)})
    assert shared_steps._read_places(tmp_path) == {"a": ("node", 3)}
    (tmp_path / shared_steps.PLACES).write_text(damage)
    assert shared_steps._read_places(tmp_path) == {}
    shared_steps._write_places(tmp_path, {"b": ("node", 4)})
    assert shared_steps._read_places(tmp_path) == {"b": ("node", 4)}


@pytest.mark.parametrize(
    ("asset", "count", "execution", "expected"),
    [
        ("evaluation", 2, TWO, True),
        ("evaluation", 1, TWO, False),
        ("evaluation", 9, ExecutionParams(), False),
        ("sample_page", 9, TWO, False),
        ("quantized_model", 2, ExecutionParams(executor="ray"), True),
    ],
)
def test_what_is_shared_out(asset: str, count: int, execution: ExecutionParams, expected: bool) -> None:
    assert is_shared(asset, count, execution) is expected


def test_many_machines_fit_a_line() -> None:
    assert shown({"a": 2, "b": 3}) == "3 on b, 2 on a"
    assert shown({f"machine-{number:03}": 1 for number in range(500)}).endswith(
        "1 on machine-002, 497 on 497 other machines"
    )


def test_under_dvc_repro_only_what_waits_for_nothing_is_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stage(name: str, *deps: str) -> tuple[str, Stage]:
        return name, Stage(name, "", list(deps), [f"data/{name.replace('@', '/')}"], {}, {})

    stages = dict(
        [
            stage("raw_corpus"),
            *(stage(f"activation_stats@{choice}", "data/raw_corpus") for choice in "abc"),
            *(
                stage(f"quantized_model@{choice}-{s}", f"data/activation_stats/{choice}")
                for choice in "abc"
                for s in "xy"
            ),
        ]
    )
    changed = {name: ["changed"] for name in stages if name.startswith("quantized_model") and name[-3:] != "a-y"}
    changed["activation_stats@b"] = ["changed"]
    monkeypatch.setattr(shared_steps, "resolved", lambda root: stages)
    monkeypatch.setattr(shared_steps, "changed_stages", lambda root: changed)
    assert ready(tmp_path, "quantized_model") == ["a-x", "c-x", "c-y"]
    assert ready(tmp_path, "sample_page") == []
    changed["raw_corpus"] = ["changed"]
    assert ready(tmp_path, "quantized_model") == []
