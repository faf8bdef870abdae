"""`python -m benchmarks.chaos`: the table of what was done to runs, what was expected, and what was found."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks.chaos import concurrent, small, surroundings
from benchmarks.chaos.disk import NoDisk, wrong_on_a_full_disk
from benchmarks.chaos.kills import Undisturbed, rounds, undisturbed
from benchmarks.chaos.processes import LAUNCH, REPRO, RUN, preload, ran

SAME = "the bytes of an undisturbed run"
ROOM = (300, 1000, 2000, 4000, 7000)
"""KiB that the disk has for a run, which takes 10 MB."""
DOORS = {RUN: "`plumbline run`", REPRO: "`dvc repro`", LAUNCH: "Dagster runs"}
Trial = Callable[[], list[str]]


@dataclass(frozen=True)
class Row:
    """What was done, what was expected, and what is wrong (empty: nothing)."""

    done: str
    expected: str
    wrong: tuple[str, ...]


def another_seed(root: Path) -> None:
    """Edit params.yaml of a workspace."""
    file = root / "params.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("seed: 0", "seed: 1"), encoding="utf-8")


def another_text(root: Path) -> None:
    """Add a document to a source of a workspace."""
    text = "the model reads another document of short words"
    (root / "texts" / "prose" / "new.txt").write_text(text, encoding="utf-8")


def another_weight(root: Path) -> None:
    """Change a byte of the base model's weights, in place."""
    with (root / "base" / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


EDITS = {"params.yaml": another_seed, "a source": another_text, "the base model": another_weight}


def wrong_after_an_edit(start: Path, scratch: Path, name: str, command: Sequence[str], step: str) -> list[str]:
    """What is wrong after an edit during a run and a further run, against a run after the edit."""
    before = scratch / f"start of {name}"
    after = scratch / f"after {name}" / "workspace"
    if not after.is_dir():
        shutil.copytree(start, before, symlinks=True)
        EDITS[name](before)
        undisturbed(before, after, RUN)
    place = scratch / f"edit of {name}, {command[0]}, {step}"
    return concurrent.wrong_after_an_edit(start, place, command, EDITS[name], step, small.recorded(after))


def dropped_file(root: Path) -> None:
    """Put a document into the inbox of a workspace."""
    (root / "inbox").mkdir(exist_ok=True)
    (root / "inbox" / "new.txt").write_text("the model reads another document of short words", encoding="utf-8")


def wrong_with_daemons(finished: Path, scratch: Path) -> list[str]:
    """What is wrong after two daemons have taken in a file, against `plumbline run`."""
    after = scratch / "after a drop" / "workspace"
    shutil.copytree(finished, after, symlinks=True)
    dropped_file(after)
    ran(after, *RUN)
    return concurrent.wrong_with_two_daemons(finished, scratch / "daemons", dropped_file, small.recorded(after))


def trials(start: Path, scratch: Path, reference: Undisturbed) -> Iterator[tuple[str, str, Trial]]:
    """Name, expectation and trial of every row but the kills."""
    expected, finished = reference.record, scratch / "undisturbed" / "workspace"
    for kib in ROOM:
        full = partial(wrong_on_a_full_disk, start, scratch / f"disk{kib}", kib, expected)
        yield f"a disk that is full after {kib} KiB, then room", f"a message; then {SAME}", full
    for name, pair in concurrent.PAIRS.items():
        yield name, SAME, partial(concurrent.wrong_after_two, start, scratch / f"two{len(name)}", pair, expected)
    daemons = partial(wrong_with_daemons, finished, scratch)
    yield "two daemons, and a file in the inbox", "the bytes of a run after the edit", daemons
    for name in EDITS:
        for command, step in ((RUN, "tokenized_samples"), (RUN, "quantized_model"), (REPRO, "activation_stats")):
            edited = partial(wrong_after_an_edit, start, scratch, name, command, step)
            done = f"an edit of {name} at {step} of `{' '.join(command)}`"
            yield done, "the bytes of a run after the edit", edited
    locked = partial(concurrent.wrong_with_a_locked_store, finished, scratch / "locked")
    yield "a locked mlflow.db", "a message before the first step", locked
    closed = partial(surroundings.wrong_with_a_readonly_cache, finished, scratch / "closed")
    yield "a read-only cache", "a message before the first step", closed
    for kind in ("symlink", "hardlink", "copy"):
        cache = partial(surroundings.wrong_with_cache, start, scratch / kind, kind, expected)
        yield f"cache.type {kind}, dvc checkout --relink", SAME, cache
    elsewhere = partial(surroundings.wrong_elsewhere, start, scratch / "elsewhere", expected)
    yield "another path, home, locale, umask, time zone, hash seed", SAME, elsewhere


def tried(trial: Trial) -> tuple[str, ...]:
    """What a trial finds wrong."""
    try:
        return tuple(trial())
    except AssertionError as error:
        return (str(error),)
    except NoDisk as error:
        return (f"not tried: {error}",)


def rows(scratch: Path, kills: int, only: str) -> Iterator[Row]:
    """Every row of the table, as it is found."""
    start = small.write(scratch / "start")
    reference = undisturbed(start, scratch / "undisturbed" / "workspace", RUN)
    for number, command in enumerate((RUN, REPRO, LAUNCH), 1):
        door = DOORS[command]
        if kills and only in f"kills of {door}":
            by_door = reference if command == RUN else undisturbed(start, scratch / command[0] / "workspace", command)
            wrong = (
                [] if by_door.record == reference.record else [f"{door} records something else than `plumbline run`"]
            )
            done = 0
            for one in rounds(command, start, scratch, kills, number, by_door):
                done += len(one.kills)
                wrong += one.wrong
                click.echo(f"{done:>4} kills of {door}: {'; '.join(one.wrong) or 'nothing wrong'}", err=True)
            yield Row(f"{done} kills of {door} at random moments", SAME, tuple(wrong))
    for name, expected, trial in trials(start, scratch, reference):
        if only in name:
            yield Row(name, expected, tried(trial))


def table(found: list[Row]) -> str:
    """The table, and its summary."""
    text = [f"{'what was done':<56} {'expected':<44} found"]
    for row in found:
        text.append(f"{row.done:<56} {row.expected:<44} {'as expected' if not row.wrong else '; '.join(row.wrong)}")
    text.append(f"{len(found)} rows, {sum(bool(row.wrong) for row in found)} not as expected")
    return "\n".join(text)


@click.command()
@click.option("--kills", default=50, show_default=True, help="Kills per way to run; 0: none.")
@click.option("--only", default="", help="Only the rows whose name contains this.")
@click.option("--scratch", type=click.Path(path_type=Path), help="A folder for the workspaces, kept; must be empty.")
def main(kills: int, only: str, scratch: Path | None) -> None:
    """Kill, fill, lock and disturb runs of a small workspace, and print what came of it. Takes 30 CPU minutes; exit
    status 1 if something is not as expected."""
    preload()
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for row in rows((scratch or Path(folder)).resolve(), kills, only):
            found.append(row)
            click.echo(f"{row.done}: {'; '.join(row.wrong) or 'as expected'}", err=True)
    click.echo(table(found))
    sys.exit(1 if any(row.wrong for row in found) else 0)


if __name__ == "__main__":
    main()
