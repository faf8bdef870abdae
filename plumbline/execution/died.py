"""What is said of a worker that died."""

from __future__ import annotations

ATTEMPTS = 2
"""Number of attempts at a job whose worker dies."""


def died(number: int, count: int) -> str:
    """A sentence about the job with this number, from 0, of so many."""
    return (
        f"job {number + 1} of {count}: its worker died {ATTEMPTS} times without an exception, as the kernel ends a "
        "process when memory runs out; set execution.workers in params.yaml lower, or execution.mode to layerwise"
    )
