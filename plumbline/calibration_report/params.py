"""`report:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReportParams(BaseModel):
    """The paired bootstrap over documents behind the verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resamples: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = 0
    baseline: str | None = None
    """Calibration choice that the others are compared with; None: the first of the grid."""
