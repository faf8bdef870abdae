"""python -m tests.helpers.killed_steps FOLDER: the steps of a model layer by layer, killed once in every part.

Every step runs in forks of this process, one after the other, until it ends. Each fork is killed while it writes the
first part that no fork before it was killed in. Prints, as JSON, the parts that were made by step, in order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plumbline.activation_stats.pieces import Pieces
from plumbline.quantized_model.layerwise_parts import COMPUTED
from tests.helpers.model_steps import STEPS, Steps


def kill_in_new_parts(log: Path, step: str) -> None:
    """Make this process note the parts that it makes, and kill itself in one that is not in the log yet.

    What belongs to a part (its hidden states, what it computes) is no part of its own, but for an evaluation, which
    writes nothing else.
    """
    write = Pieces.write
    others = (f".{COMPUTED}",) if step == "evaluation" else (f".{COMPUTED}", ".states")

    def noted(pieces: Pieces, name: str, tensors: Any, facts: Any) -> None:
        if name.endswith(others):
            return write(pieces, name, tensors, facts)
        is_new = name not in log.read_text().split()
        with log.open("a") as file:
            file.write(f"{name}\n")
        if not is_new:
            return write(pieces, name, tensors, facts)
        for _ in tensors:  # all is computed, and nothing is on disk
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    Pieces.write = noted  # type: ignore[method-assign]


def forked(run: Callable[[], None]) -> int:
    """Run in a fork of this process; returns its exit status, or the negative number of the signal that ended it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path) -> None:
    torch.set_num_threads(1)
    made: dict[str, list[str]] = {}
    for step in STEPS:
        log = root / f"{step}.log"
        log.write_text("")

        def run(step: str = step, log: Path = log) -> None:
            kill_in_new_parts(log, step)
            getattr(Steps(root, "layerwise", root / f"{step}.parts"), step)()

        while (status := forked(run)) == -signal.SIGKILL:
            pass
        if status:
            sys.exit(f"{step} ended with {status}")
        made[step] = log.read_text().split()
    print(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
