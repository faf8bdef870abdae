"""`plumbline run` with clocks around every stage and the pure function in it; writes seconds.json."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.graph import step
from plumbline.graph.run import run_graph
from plumbline.workspace import workspace_root

Seconds = dict[str, list[float]]
"""Wall and CPU seconds by asset."""


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds of this process so far; the difference of two counts."""
    return time.perf_counter(), time.process_time()


def add(seconds: Seconds, asset: str, since: tuple[float, float]) -> None:
    """Add what has passed `since`."""
    before = seconds.get(asset, [0.0, 0.0])
    seconds[asset] = [sum(parts) - then for *parts, then in zip(before, clocks(), since, strict=True)]


def main() -> None:
    whole: Seconds = {}
    functions: Seconds = {}
    started: list[tuple[str, tuple[float, float]]] = []
    recording = step.recording

    @contextlib.contextmanager
    def clocked(root: Path, name: str, *arguments: Any) -> Iterator[Any]:
        """`recording` with clocks around its body, which is the pure function of the stage."""
        with recording(root, name, *arguments) as begun:
            since = clocks()
            yield begun
            add(functions, name.partition("@")[0], since)

    def announce(line: str) -> None:
        if line.startswith("▸"):
            started.append((line.split()[1], clocks()))
        elif line.endswith(" s") and started:  # the line after a stage; others are warnings
            add(whole, *started.pop())

    step.recording = clocked
    steps = run_graph(workspace_root(), announce=announce)
    report = {"whole": whole, "functions": functions, "steps": steps, "cpu": time.process_time()}
    Path("seconds.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
