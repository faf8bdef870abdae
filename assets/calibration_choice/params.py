"""An entry under `calibrations:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ChoiceParams(BaseModel):
    """A calibration choice: strategy, size, seed, and the options of the strategy (any further keys)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    strategy: str
    n: int = Field(gt=0)
    seed: int = 0
    domains: tuple[str, ...] | None = None
    """Choose among these domains of the pool only."""
    allow_fewer: bool = False
    """Accept a set smaller than n instead of failing."""
