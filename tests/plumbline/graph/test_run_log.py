"""The log of a run: the library's messages, and how far long work is."""

from __future__ import annotations

import logging
import threading

import pytest

from plumbline.graph.run_log import EVERY, logged, progress_line
from plumbline.progress import Bar, Progress

LIBRARY = logging.getLogger("plumbline")


def test_the_log_says_how_far_the_work_is() -> None:
    lines: list[str] = []
    heard = threading.Event()

    def say(level: int, message: str) -> None:
        assert level == logging.INFO
        lines.append(message)
        if "3 of 4 sets (75 %)" in message:
            heard.set()

    with logged("activation_stats@a", say, every=0.001), Bar(total=4, desc="collection", unit="set") as bar:
        bar.update(3)
        assert heard.wait(60)
    assert all(line.startswith("activation_stats@a: ") and line.endswith(" so far") for line in lines)


def state() -> tuple[int, int, list[logging.Handler], int]:
    progress = logging.getLogger("plumbline.progress")
    return LIBRARY.level, progress.level, list(LIBRARY.handlers), threading.active_count()


def test_nothing_is_said_about_short_work_and_all_is_as_before() -> None:
    before = (
        LIBRARY.level,
        logging.getLogger("plumbline.progress").level,
        list(LIBRARY.handlers),
        threading.active_count(),
    )
    lines: list[tuple[int, str]] = []
    with logged("a", lambda level, text: lines.append((level, text))), Bar(total=1, desc="b", unit="c") as bar:
        logging.getLogger("plumbline.raw_corpus.ingest").warning("held %s back", "x.txt")
        logging.getLogger("plumbline.raw_corpus.ingest").debug("not for people")
        bar.update()
    assert lines == [(logging.WARNING, "held x.txt back")]
    assert EVERY == 20
    after = (
        LIBRARY.level,
        logging.getLogger("plumbline.progress").level,
        list(LIBRARY.handlers),
        threading.active_count(),
    )
    assert after == before


def test_a_failing_step_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="no"), logged("a", lambda *_: None, every=0.001):
        raise ValueError("no")
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (None, "a: 40 s so far"),
        (Progress("loading", 4, 4, "files", 9), "a: 40 s so far"),
        (Progress("files", 4, None, "files", 9), "a: files: 4 files; 40 s so far"),
        (Progress("b", 1, 4, "sets", 10), "a: b: 1 of 4 sets (25 %), about 30 s left; 40 s so far"),
    ],
)
def test_the_line(state: Progress | None, line: str) -> None:
    assert progress_line("a", state, 40.2) == line
