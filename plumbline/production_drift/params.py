"""`drift:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DriftParams(BaseModel):
    """When production counts as drifted from the champion's calibration set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(default=0.01, gt=0, lt=1)
    """Largest p-value of the representativeness panel that counts as drift (the smallest possible is 1 / 401)."""
    growth: float = Field(default=1.5, ge=1)
    """A metric that was already flagged when the champion's set was chosen counts only if its ratio to the typical
    random draw has grown by this factor, since a set may differ from production on purpose. The distance of random
    draws, which shows that the pool lacks today's production, must grow by this factor, too."""
    min_samples: int = Field(default=64, ge=1)
    """Fewest production samples for a result."""
