"""The Python of every tool: Plumbline's own, and an environment per peer, made on first use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.recipes import AUTO_ROUND, GPTQMODEL, LLM_COMPRESSOR, PLUMBLINE

PROJECT = Path(__file__).resolve().parents[2]
WORK = PROJECT / ".plumbline" / "peers"
REQUIREMENTS = {
    LLM_COMPRESSOR: (
        "llmcompressor==0.14.0.1",
        "compressed-tensors==0.19.0",
        "transformers==5.17.0",
        "torch==2.13.0",
        "datasets",
    ),
    GPTQMODEL: ("gptqmodel==7.7.0", "transformers==5.24.0", "torch==2.14.1"),
    AUTO_ROUND: ("auto-round==0.16.1", "transformers==5.24.0", "torch==2.14.1"),
}
"""Each pins other versions of Plumbline's dependencies."""


class Unavailable(Exception):
    """A tool cannot be installed or cannot run here; the message is the reason, for the table."""


def python_of(tool: str, install: bool = True) -> str:
    """The Python that runs a tool.

    It is that of PLUMBLINE_PEER_LLM_COMPRESSOR (and so on: a folder), or of .plumbline/peers/venv-NAME.

    Args:
        install: make the environment if it is missing.

    Raises:
        Unavailable: pip failed, or the environment is missing and `install` is false.
    """
    if tool == PLUMBLINE:
        return sys.executable
    folder = Path(os.environ.get(f"PLUMBLINE_PEER_{tool.upper()}") or WORK / f"venv-{tool}")
    python = folder / "bin" / "python"
    if not python.is_file():
        if not install:
            raise Unavailable(f"no environment: python -m benchmarks.peers --tools {tool} makes it")
        _create(tool, folder)
    return str(python)


def _create(tool: str, folder: Path) -> None:
    print(f"installing {', '.join(REQUIREMENTS[tool])} into {folder.name}; this takes a few minutes", flush=True)
    made = folder.with_name(f"{folder.name}-unfinished")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(made)],
        [
            str(made / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *REQUIREMENTS[tool],
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise Unavailable(f"not installed: {lines[-1][:300]}")
    made.rename(folder)
