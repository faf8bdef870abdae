"""`tokenize:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SplitShares(BaseModel):
    """Shares of the documents in the splits other than the pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tuning: float = Field(default=0.1, ge=0, lt=1)
    report: float = Field(default=0.1, ge=0, lt=1)


class TokenizeParams(BaseModel):
    """How documents become samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: int | None = Field(default=None, gt=1)
    """Longest sample, in tokens, special tokens included; None: as many as the base model reads at once."""
    long_documents: Literal["window", "truncate", "drop"] = "window"
    min_tokens: int = Field(default=16, ge=1)
    """Shorter samples and last windows are dropped and counted as too short."""
    add_special_tokens: bool = True
    splits: SplitShares = SplitShares()
    max_refused: float = Field(default=0.05, ge=0, le=1)
    """Largest share of documents that the chat template may refuse; above it the run fails."""
    workers: int | None = None
    """Number of processes; None: one per core. It changes no result."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> TokenizeParams:
        if self.max_length is not None and self.min_tokens > self.max_length:
            raise ValueError(
                f"tokenize.min_tokens is {self.min_tokens} and max_length {self.max_length}: every sample would be "
                f"too short; lower min_tokens"
            )
        return self

    def within(self, context: int | None) -> TokenizeParams:
        """These parameters with `max_length` filled in for a model that reads `context` tokens at once.

        Raises:
            ValueError: `max_length` is larger, or is not set and the model does not say what it reads.
        """
        if self.max_length is None and context is None:
            raise ValueError(
                "tokenize.max_length: found none, and the base model's config.json does not say how many tokens it "
                "reads at once; set max_length in params.yaml, such as 2048"
            )
        if self.max_length is not None and context is not None and self.max_length > context:
            raise ValueError(
                f"tokenize.max_length: found {self.max_length}, but the base model reads at most {context} tokens at "
                f"once; set it to {context} or less, or leave it out"
            )
        return TokenizeParams.model_validate({**self.model_dump(), "max_length": self.max_length or context})
