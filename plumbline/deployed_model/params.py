"""`deployment:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DeploymentParams(BaseModel):
    """Which scheme is deployed, and what a candidate must hold to before it becomes the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: str
    """The best calibration choice under this scheme is the candidate."""
    max_worse: float = Field(default=0.01, ge=0)
    """Mean KL must be lower than the champion's, and the upper end of the paired interval at most this share of the
    champion's KL above it. (How sure the interval is: report.confidence.)"""
    max_fallbacks: int = Field(default=0, ge=0)
    """Layers that were not quantized by the method asked for."""
    max_megabytes: float | None = Field(default=None, gt=0)
    """Of the weights on disk (10^6 bytes); None: smaller than the base model's."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Two texts are near-duplicates if the shorter one shares at least this share of its 13-grams."""
    max_near_duplicates: float = Field(default=0.0, ge=0, le=1)
    """Share of the report split's documents that may be near-duplicates of a calibration sample."""
    serving: str | None = None
    """Folder of the tokenizer that production serves with; None: the candidate's own folder is what is served."""
