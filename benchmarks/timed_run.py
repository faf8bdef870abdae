"""`plumbline run` with timers around every stage and the pure function in it; writes seconds.json."""

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


def main() -> None:
    whole: dict[str, float] = {}
    functions: dict[str, float] = {}
    started_stages: list[tuple[str, float]] = []
    recording = step.recording

    @contextlib.contextmanager
    def clocked(root: Path, name: str, *arguments: Any) -> Iterator[Any]:
        """`recording` with a timer around its body, which is the pure function of the stage."""
        with recording(root, name, *arguments) as begun:
            started = time.perf_counter()
            yield begun
            asset = name.split("@")[0]
            functions[asset] = functions.get(asset, 0) + time.perf_counter() - started

    def announce(line: str) -> None:
        if line.startswith("▸"):
            started_stages.append((line.split()[1], time.perf_counter()))
        else:
            name, started = started_stages[-1]
            whole[name] = whole.get(name, 0) + time.perf_counter() - started

    step.recording = clocked
    run_graph(workspace_root(), announce=announce)
    Path("seconds.json").write_text(json.dumps({"whole": whole, "functions": functions}))


if __name__ == "__main__":
    main()
