"""An entry under `calibrations:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ChoiceParams(BaseModel):
    """A calibration choice: strategy, size, seed, and the options of the strategy (any further keys)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    strategy: str
    n: int = Field(gt=0)
    """Samples in the set."""
    seed: int = Field(default=0, ge=0)
    domains: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Choose among these domains of the pool only; None: all."""
    allow_fewer: bool = False
    """Accept a set smaller than n instead of failing."""
