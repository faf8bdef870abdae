"""The strategies by name: the built-in ones and those that installed packages add.

A strategy is one function

    def select(pool: Pool, n: int, rng: numpy.random.Generator, *, my_option: int = 3) -> Selection

Its keyword-only parameters are its options under `calibrations:` in params.yaml: their annotations are checked
(`Annotated[int, Field(ge=1)]` works) and their defaults filled in. A package adds one by an entry point:

    [project.entry-points."plumbline.strategies"]
    my_strategy = "my_package.my_module:select"
"""

from __future__ import annotations

from plumbline.calibration_set.strategies import registry
from plumbline.calibration_set.strategies.registry import SIMPLE, Strategy

__all__ = ["BUILT_IN", "Strategy", "get", "names"]

BUILT_IN = {**SIMPLE, "mixture": "plumbline.calibration_set.strategies.mixture"}
"""`mixture` looks the strategy within each domain up in the registry, which therefore cannot know it."""


def names() -> list[str]:
    """Every strategy that can be named in params.yaml, sorted."""
    return registry.names(BUILT_IN)


def get(name: str) -> Strategy:
    """The strategy called `name`; raises ValueError as `registry.get` does."""
    return registry.get(name, BUILT_IN)
