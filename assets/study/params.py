"""An entry under `studies:` in params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RuleParams(BaseModel):
    """A rule of choosing: a strategy and its options (any further keys), without a size and a seed."""

    model_config = ConfigDict(extra="allow", frozen=True)

    strategy: str

    @model_validator(mode="after")
    def _leaves_size_and_seed_open(self) -> Self:
        fixed = sorted({"name", "n", "seed"} & set(self.model_extra or {}))
        if fixed:
            raise ValueError(f"{', '.join(fixed)} is what a study varies; remove it (see sizes, draws and seed)")
        return self


class StudyParams(BaseModel):
    """Rules of choosing against a baseline rule, over many paired draws: what `plumbline study` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = "random"
    """The rule that the others are compared with."""
    rules: dict[str, RuleParams] = {
        "random": RuleParams(strategy="random"),
        "clusters": RuleParams.model_validate({"strategy": "embedding_cluster"}),
    }
    sizes: tuple[int, ...] = Field(default=(16, 64, 256), min_length=1)
    """Samples in a set."""
    draws: int = Field(default=10, ge=5)
    """How often each rule chooses. With fewer than 5 intervals would be too short (measured); 10 is the norm."""
    share: float = Field(default=0.8, gt=0, le=1)
    """Share of the pool's documents that a draw chooses from: what makes the draws of a rule without chance differ."""
    schemes: tuple[str, ...] = Field(min_length=1)
    """Names under `schemes:`."""
    tokens_per_domain: int | None = Field(default=8192, gt=0)
    """How much of the report split is evaluated, as in `evaluation:`."""
    statistics_bytes: int = Field(default=4 * 2**30, gt=0)
    """Hessians kept in memory at a time. A sample is read once for all the sets that are kept together."""
    resamples: int = Field(default=4000, ge=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = Field(default=0, ge=0)
    """Draw b has seed + b."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.baseline not in self.rules:
            raise ValueError(f"baseline: {self.baseline!r} is not among the rules ({', '.join(self.rules)})")
        if len(self.rules) < 2:
            raise ValueError("rules: found only the baseline; expected at least one rule to compare with it")
        if list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise ValueError(f"sizes: found {list(self.sizes)}, expected positive numbers, ascending without repeats")
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError("schemes: a name occurs twice")
        return self

    @property
    def rivals(self) -> list[str]:
        """The rules that are compared with the baseline, in order."""
        return [name for name in self.rules if name != self.baseline]
