"""What the machines of a running Ray cluster say before any work: do they see the workspace, and the same library."""

from __future__ import annotations

import importlib
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.distribution import version
from plumbline.execution.packages import other_packages, package_versions
from plumbline.execution.params import ExecutionParams
from plumbline.execution.ray_cluster import connected


@dataclass(frozen=True)
class MachineAnswer:
    """What a machine of the cluster says."""

    host: str
    sees: bool
    """Whether it sees the file that it was asked for."""
    version: str
    """Of Plumbline."""
    packages: Mapping[str, str]
    """As `package_versions` gives them."""


def cluster_problems(execution: ExecutionParams, folder: Path) -> Iterator[str]:
    """What keeps the machines of a running cluster from working on a folder; joins the cluster and leaves it again.

    Args:
        folder: an existing folder, writable here, that all machines must see at the same path.
    """
    if execution.address is None:
        return
    mark = folder / f".seen-by-all.{uuid.uuid4().hex[:8]}"
    mark.touch()
    try:
        with connected(execution) as ray:
            strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
            remote = ray.remote(num_cpus=0, max_retries=0)(answer)
            machines = [entry for entry in ray.nodes() if entry["Alive"] and entry["Resources"].get("CPU")]
            asked = {
                remote.options(
                    scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)
                ).remote(str(mark)): entry["NodeManagerAddress"]
                for entry in machines
            }
            for reference, address in asked.items():
                try:
                    said = ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield (
                        f"Ray's machine {address} cannot run Plumbline ({str(error).strip().splitlines()[-1]}); "
                        f"install version {version()} there, with the same Python"
                    )
                    continue
                yield from _differences(said, address, folder)
    except ValueError as error:
        yield str(error)
    finally:
        mark.unlink(missing_ok=True)


def answer(mark: str) -> MachineAnswer:
    """What this machine says of itself."""
    return MachineAnswer(socket.gethostname(), Path(mark).is_file(), version(), package_versions())


def _differences(said: MachineAnswer, address: str, folder: Path) -> Iterator[str]:
    if not said.sees:
        yield (
            f"Ray's machine {said.host} ({address}) does not see {folder}: the workspace must lie on a file system "
            "that all machines of the cluster mount at the same path; mount it there, or take execution.address out"
        )
    if said.version != version():
        yield (
            f"Ray's machine {said.host} ({address}) has Plumbline {said.version}, this one {version()}: install the "
            "same version on both"
        )
    yield from other_packages(f"Ray's machine {said.host} ({address})", said.packages, package_versions())
