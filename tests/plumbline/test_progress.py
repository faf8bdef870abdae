"""What long work says about itself: to a terminal, and to whoever listens to the log."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from plumbline.progress import Bar, Progress


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> list[Progress]:
    """What bars have logged, in order; it grows."""
    caplog.set_level(logging.DEBUG, "plumbline.progress")
    states: list[Progress] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            states.append(record.progress)

    listener = Listener()
    logging.getLogger("plumbline.progress").addHandler(listener)
    yield states
    logging.getLogger("plumbline.progress").removeHandler(listener)


def amounts(told: list[Progress]) -> list[tuple[int, int | None]]:
    return [(state.done, state.total) for state in told]


def test_every_update_is_logged(told: list[Progress]) -> None:
    with Bar(total=5, desc="activations", unit="token") as bar:
        bar.update(2)
        bar.update(3)
    assert amounts(told) == [(0, 5), (2, 5), (5, 5)]
    assert {(state.what, state.unit) for state in told} == {("activations", "tokens")}


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_is_logged(told: list[Progress], known: bool) -> None:
    items = ["a", "b", "c"]
    total = 3 if known else None
    assert list(Bar(items if known else iter(items), desc="sets", unit=" sets")) == items
    assert amounts(told) == [(0, total), (1, total), (2, total), (3, total)]


def test_threads_lose_no_update(told: list[Progress]) -> None:
    with Bar(total=400, desc="matrices", unit="matrices") as bar, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: bar.update(2), range(200)))
    assert sorted(amounts(told)) == [(done, 400) for done in range(0, 401, 2)]


def test_a_bar_that_is_off_says_nothing(told: list[Progress]) -> None:
    assert list(Bar([1, 2], desc="inner", unit="set", disable=True)) == [1, 2]
    assert told == []


def test_nothing_is_made_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.progress.Progress", None)
    with Bar(total=1, desc="x", unit="y") as bar:
        bar.update()


def test_a_file_gets_a_line_every_so_often(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0, 0, 59, 60, 61, 119, 120, 500, 500])
    monkeypatch.setattr("plumbline.progress.time", SimpleNamespace(monotonic=lambda: next(times)))
    with Bar(total=80, desc="study", unit="set") as bar:
        for _ in range(6):  # after 59, 60, 61, 119, 120 and 500 s
            bar.update(10)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "  study: 20 of 80 sets (25 %), about 3 min left",
        "  study: 50 of 80 sets (62 %), about 72 s left",
        "  study: 60 of 80 sets (75 %), about 3 min left",
    ]
    assert not shown.out


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_nobody_left_to_read_ends_no_work(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr("sys.stderr", Closed())
    monkeypatch.setattr("plumbline.progress.EVERY", 0.0)
    assert list(Bar(["a", "b"], desc="study", unit="set")) == ["a", "b"]


def test_a_terminal_gets_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr("plumbline.progress.EVERY", 0.0)
    with Bar(total=2, desc="study", unit="set", file=terminal, delay=0) as bar:
        bar.update()
    assert "study:" in terminal.getvalue() and "study: 1 of 2" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (Progress("a", 0, 8, "tokens", 9.0), "a: 0 of 8 tokens (0 %)"),
        (Progress("a", 2, 8, "tokens", 30.0), "a: 2 of 8 tokens (25 %), about 90 s left"),
        (Progress("a", 7, 8, "tokens", 7 * 3600.0), "a: 7 of 8 tokens (87 %), about 60 min left"),
        (Progress("a", 8, 8, "tokens", 9.0), "a: 8 of 8 tokens (100 %)"),
        (Progress("a", 3, None, "files", 9.0), "a: 3 files"),
        (Progress("a", 0, 0, "files", 9.0), "a: 0 files"),
    ],
)
def test_the_sentence(state: Progress, sentence: str) -> None:
    assert str(state) == sentence
