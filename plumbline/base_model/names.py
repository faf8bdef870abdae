"""Predicates over the names of modules and weights: inside a module, or outside it."""

from __future__ import annotations

from collections.abc import Callable

Names = Callable[[str], bool]
"""Selects modules or weights by name."""
OUTSIDE = "outside"
"""Name of the part of a model that is outside its decoder layers."""


def within(module: str) -> Names:
    """Whether a name is that of the module or of something in it."""
    return lambda name: name == module or name.startswith(f"{module}.")


def outside(module: str) -> Names:
    """Whether a name is neither that of the module nor of something in it."""
    inside = within(module)
    return lambda name: not inside(name)
