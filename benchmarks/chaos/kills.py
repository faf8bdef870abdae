"""SIGKILL at random moments: the rerun gives the bytes of an undisturbed run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.chaos.processes import Process, ran
from benchmarks.chaos.small import differences, recorded


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody stopped."""

    record: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Round:
    """A workspace that came to its end: the moments of its kills in seconds, and what is wrong with it."""

    kills: tuple[float, ...]
    wrong: tuple[str, ...]


def undisturbed(start: Path, place: Path, command: Sequence[str]) -> Undisturbed:
    """Run the command once in a copy of the workspace."""
    shutil.copytree(start, place, symlinks=True)
    began = time.monotonic()
    ran(place, *command)
    return Undisturbed(recorded(place), time.monotonic() - began)


def rounds(
    command: Sequence[str], start: Path, scratch: Path, kills: int, seed: int, reference: Undisturbed
) -> Iterator[Round]:
    """Kill runs until `kills` are done; each workspace is run and killed until a run comes to its end.

    A kill comes after up to a quarter of an undisturbed run, so that work goes on from kill to kill and the kills are
    spread over all of it. Three of four hit all processes, as a power failure; the others the first process alone.
    """
    random, done = Random(seed), 0
    while done < kills:
        root = scratch / f"{seed}-{done:02}" / "workspace"
        shutil.copytree(start, root, symlinks=True)
        moments: list[float] = []
        wrong: list[str] = []
        try:
            while done + len(moments) < kills:
                process = Process(root, command, root.parent / "killed.log")
                moment = random.uniform(0, reference.seconds / 4)
                if (status := process.wait(moment)) is not None:
                    if status:
                        raise AssertionError(f"{' '.join(command)} ended with {status}: {process.ended().tail}")
                    break
                process.kill(group=random.random() < 0.75)
                moments.append(round(moment, 3))
                ran(root, "plumbline", "status", status=None)
            ran(root, *command)
            wrong = differences(root, reference.record)
        except AssertionError as error:
            wrong = [str(error)]
        done += len(moments)
        yield Round(tuple(moments), tuple(wrong))
        if not wrong:
            shutil.rmtree(root.parent)
