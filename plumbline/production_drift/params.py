"""`drift:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DriftParams(BaseModel):
    """When production counts as having moved away from what the champion was calibrated on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(default=0.01, gt=0, lt=1)
    """p over all metrics of the representativeness panel must be at most this (the smallest possible is 1 / 401)."""
    growth: float = Field(default=1.5, ge=1)
    """A metric that was flagged when the champion's set was chosen counts only where its ratio to the typical random
    draw has grown by this factor since: a set may be far from production on purpose. So does the distance of random
    draws, which says that the pool has nothing like today's production."""
    min_samples: int = Field(default=64, ge=1)
    """With fewer production samples nothing is said."""
