"""How far two runs of a model are apart: log-probabilities and next tokens, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scored:
    """What one run says of one sequence: a prompt, and behind it tokens that a model chose greedily.

    Attributes:
        logprobs: (n - 1,) float64, nats: of every token but the first, given those before it.
        likeliest: (n - 1,) int64: the likeliest token at the same positions.
        prompt: number of tokens of the prompt.
    """

    logprobs: NDArray[np.float64]
    likeliest: NDArray[np.int64]
    prompt: int


@dataclass(frozen=True)
class RunDifference:
    """Two runs over the same sequences.

    Attributes:
        mean: mean absolute difference of the log-probabilities, nats.
        largest: largest absolute difference.
        shift: mean difference, the second run minus the first; positive: the second finds the texts likelier.
        shift_error: standard error of `shift`, with sequences as units; None: there is one sequence.
        equal_next: share of positions with the same likeliest token.
        equal_continuations: number of sequences in which all likeliest tokens behind the prompt are the same.
        sequences, positions: how many were compared.
    """

    mean: float
    largest: float
    shift: float
    shift_error: float | None
    equal_next: float
    equal_continuations: int
    sequences: int
    positions: int


def difference(first: Sequence[Scored], second: Sequence[Scored]) -> RunDifference:
    """Compare two runs over the same sequences.

    Raises:
        ValueError: the runs have different sequences, or a log-probability is not finite.
    """
    shapes = [[(len(one.logprobs), one.prompt) for one in run] for run in (first, second)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"the two runs scored different sequences: (positions, prompt) {shapes[0]} and {shapes[1]}")
    changes = [b.logprobs - a.logprobs for a, b in zip(first, second, strict=True)]
    equal = [a.likeliest == b.likeliest for a, b in zip(first, second, strict=True)]
    change = np.concatenate(changes)
    if bad := int((~np.isfinite(change)).sum()):
        raise ValueError(f"{bad} of {len(change)} log-probabilities are not finite (inf or NaN)")
    shift = float(change.mean())
    return RunDifference(
        mean=float(np.abs(change).mean()),
        largest=float(np.abs(change).max()),
        shift=shift,
        shift_error=_clustered_error(changes, shift),
        equal_next=float(np.concatenate(equal).mean()),
        equal_continuations=sum(bool(same[one.prompt - 1 :].all()) for same, one in zip(equal, first, strict=True)),
        sequences=len(changes),
        positions=len(change),
    )


def _clustered_error(changes: Sequence[NDArray[np.float64]], mean: float) -> float | None:
    """Standard error of the mean over all positions, where positions of one sequence are not independent."""
    count = len(changes)
    if count < 2:
        return None
    sums = np.array([(change - mean).sum() for change in changes])
    positions = sum(map(len, changes))
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / positions)
