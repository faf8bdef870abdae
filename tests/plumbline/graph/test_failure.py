"""Which errors of a step become a failure with a sentence, and which keep their type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from plumbline.calibration_choice.choice import resolve
from plumbline.graph.failure import explained
from plumbline.graph.partitions import split_pair
from plumbline.graph.run import failure
from plumbline.sample_features.params import FeatureParams


def refused(code: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as raised, explained():
        code()
    return raised.value


def test_what_the_library_refuses_is_a_failure_with_its_sentence() -> None:
    error = refused(lambda: resolve("a", {"strategy": "nonsense", "n": 1, "seed": 0}))
    assert isinstance(error, dg.Failure) and error.allow_retries is False
    assert error.description is not None and error.description.startswith("params.yaml, calibrations: a: ")
    assert isinstance(error.__cause__, ValueError) and str(error.__cause__) == error.description


def test_a_missing_file_and_a_full_disk_are_failures() -> None:
    error = refused(lambda: Path("/nowhere/at/all").read_text())
    assert isinstance(error, dg.Failure) and "/nowhere/at/all" in str(error.description)


FAULTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "C code of another library": (lambda: torch.ones(2) @ torch.ones(3), RuntimeError),
    "another library": (lambda: FeatureParams.model_validate({"embedder": 1}), ValueError),
    "a key that code of ours expects": (lambda: split_pair("no such pair"), KeyError),
    "a test": (lambda: int("x"), ValueError),
    "a type": (lambda: len(3), TypeError),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_keeps_its_type(name: str) -> None:
    code, kind = FAULTS[name]
    error = refused(code)
    assert isinstance(error, kind) and not isinstance(error, dg.Failure)


def test_the_command_says_the_sentence() -> None:
    @dg.asset
    def weights() -> None:
        with explained():
            resolve("a", {"strategy": "nonsense", "n": 1, "seed": 0})

    result = dg.materialize([weights], raise_on_error=False)
    [event] = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data is not None
    assert failure(result) == f"weights: {event.step_failure_data.user_failure_data.description}"
    assert failure(result).startswith("weights: params.yaml, calibrations: a: ")
