"""`plumbline run` with a clock on every stage. Writes seconds.json."""

from __future__ import annotations

import json
import time
from pathlib import Path

from orchestration.params import project_root
from orchestration.study import run_study


def main() -> None:
    seconds: dict[str, float] = {}
    began: list[tuple[str, float]] = []

    def announce(line: str) -> None:
        if line.startswith("▸"):
            began.append((line.split()[1], time.perf_counter()))
        else:
            name, started = began[-1]
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - started

    run_study(project_root(), announce=announce)
    Path("seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
