"""`tokenize:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SplitShares(BaseModel):
    """Shares of the documents that are kept from the pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tuning: float = Field(default=0.1, ge=0, lt=1)
    report: float = Field(default=0.1, ge=0, lt=1)


class TokenizeParams(BaseModel):
    """How documents become samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: int = Field(default=1024, gt=1)
    """Longest sample, in tokens, special tokens included."""
    long_documents: Literal["window", "truncate", "drop"] = "window"
    min_tokens: int = Field(default=16, ge=1)
    """Shorter samples (and last windows) are counted as too short, not used."""
    add_special_tokens: bool = True
    splits: SplitShares = SplitShares()
    max_refused: float = Field(default=0.05, ge=0, le=1)
    """Share of the documents that the chat template may refuse before the run fails."""
    workers: int | None = None
    """Processes; None: one per core. The result does not depend on it."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> TokenizeParams:
        if self.min_tokens > self.max_length:
            raise ValueError(
                f"tokenize.min_tokens is {self.min_tokens} and max_length {self.max_length}: no sample could be long "
                f"enough; lower min_tokens"
            )
        return self
