"""Values of a launch: they win, and a wrong one is the launch's fault."""

from __future__ import annotations

import pytest

from plumbline.activation_stats.params import ExecutionParams
from plumbline.graph.launch import launched

SECTION = ExecutionParams(mode="whole", workers=2)


def test_what_is_given_wins_and_the_rest_stays() -> None:
    assert launched(SECTION, {"mode": None, "workers": 3}, "a") == ExecutionParams(mode="whole", workers=3)
    assert launched(SECTION, {}, "a") == SECTION


@pytest.mark.parametrize(("name", "value"), [("mode", "fast"), ("workers", 0), ("worker", 1)])
def test_a_wrong_value_is_the_launch_s(name: str, value: object) -> None:
    with pytest.raises(ValueError) as refused:
        launched(SECTION, {name: value}, "activation_stats")
    message = str(refused.value)
    assert message.startswith(f"the launch of activation_stats: {name}: ") and message.endswith(
        "in the launch's config"
    )
    assert repr(value) in message and "params.yaml" not in message
