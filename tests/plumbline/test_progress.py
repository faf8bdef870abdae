"""What long work says about itself: to a terminal, and to whoever listens to the log."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

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
