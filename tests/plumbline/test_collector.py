"""The garbage collector rests while libraries are imported, and works afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from plumbline.collector import collector_paused, resume_collector


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_it_rests_in_the_context_and_is_then_as_it_was() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="of the block"), collector_paused():
        raise ValueError("of the block")
    assert gc.isenabled()


def test_work_goes_on_with_a_collector_that_leaves_out_what_was_loaded() -> None:
    before = gc.get_freeze_count()
    loaded: list[list[int]] = [[1], [2]]
    with collector_paused():
        resume_collector()
        assert gc.isenabled() and gc.get_freeze_count() > before
        later: list[object] = []
        assert any(held is later for held in gc.get_objects()) and not any(held is loaded for held in gc.get_objects())
    assert gc.isenabled()
