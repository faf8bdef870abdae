"""An entry under `studies:` in params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plumbline.activation_stats.params import StatisticsParams

RTN, NONSENSE, ORACLE = "rtn", "nonsense", "oracle"
CONTROLS = {
    RTN: "no texts at all: weights rounded to nearest at the same bits, activation scales found at run time",
    NONSENSE: "uniformly random token ids, as many and as long as a random set of the same draw",
    ORACLE: "texts of the very split that is evaluated, in its mix of domains, but never a document that is evaluated",
}
"""The controls of every study, by reserved name; see plumbline/study/controls.py."""


class RuleParams(BaseModel):
    """A rule of choosing: a strategy and its options (any further keys), without a size and a seed."""

    model_config = ConfigDict(extra="allow", frozen=True)

    strategy: str

    @model_validator(mode="after")
    def _leaves_size_and_seed_open(self) -> Self:
        fixed = sorted({"name", "n", "seed"} & set(self.model_extra or {}))
        if fixed:
            raise ValueError(f"{', '.join(fixed)} is varied by the study; remove it (see sizes, draws and seed)")
        return self


RANDOM = RuleParams(strategy="random")


class StudyParams(BaseModel):
    """Rules of choosing × sizes × draws × schemes, against a baseline and controls: what `plumbline study` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = "random"
    """The rule that the others are compared with."""
    rules: dict[str, RuleParams] = {
        "random": RuleParams(strategy="random"),
        "clusters": RuleParams.model_validate({"strategy": "embedding_cluster"}),
    }
    sizes: tuple[int, ...] = Field(default=(16, 64, 256), min_length=1)
    """Samples in a set."""
    curve: tuple[int, ...] = ()
    """Further sizes at which only the baseline is measured, for the curve of quality against size."""
    draws: int = Field(default=10, ge=5)
    """Number of draws per rule. With fewer than 5 intervals are too short (measured); 10 is usual."""
    share: float = Field(default=0.8, gt=0, le=1)
    """Share of the pool's documents that a draw chooses from, so that draws of a deterministic rule differ."""
    schemes: tuple[str, ...] = Field(min_length=1)
    """Names under `schemes:`."""
    random_sets: int = 24
    """Random sets per size over which representativeness is correlated with quality: the draws of the plain random
    rule, and further ones. 0: none. Fewer than 20 cannot distinguish a correlation of 0.5 from chance."""
    tokens_per_domain: int | None = Field(default=8192, gt=0)
    """How much of the report split is evaluated, as in `evaluation:`."""
    tokens_per_document: int | None = Field(default=None, ge=2)
    """Number of leading tokens of a document's window that are evaluated; None: all. Tokens of one document are
    similar, so evaluating more documents in the same time detects smaller differences."""
    statistics_bytes: int | None = Field(default=None, gt=0)
    """Bytes of statistics in memory at a time; None: half of the free memory. A sample is read once for all sets in
    memory. It changes no result."""
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
        for name, sizes in (("sizes", self.sizes), ("curve", self.curve)):
            if list(sizes) != sorted(set(sizes)) or min(sizes, default=1) < 1:
                raise ValueError(f"{name}: found {list(sizes)}, expected positive numbers, ascending without repeats")
        if reserved := sorted(set(CONTROLS) & set(self.rules)):
            raise ValueError(f"rules: {', '.join(reserved)} is a name that every study uses itself; rename the rule")
        if 0 < self.random_sets < 20:
            raise ValueError(f"random_sets: found {self.random_sets}, expected 20 or more, or 0 to leave them out")
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError("schemes: a name occurs twice")
        return self

    @property
    def rivals(self) -> list[str]:
        """The rules that are compared with the baseline, in order."""
        return [name for name in self.rules if name != self.baseline]

    @property
    def all_sizes(self) -> list[int]:
        """Sizes at which the baseline is measured, ascending."""
        return sorted({*self.sizes, *self.curve})

    @property
    def random_rule(self) -> str | None:
        """The rule that draws uniformly from the whole pool; None: no rule does."""
        return next((name for name, rule in self.rules.items() if rule == RANDOM), None)


def require_read_together(settings: StatisticsParams, histogram: bool) -> None:
    """Refuse settings that are not supported for reading many sets at once.

    Args:
        histogram: whether a scheme of the study reads one.

    Raises:
        ValueError: names the setting and the line to change.
    """
    if settings.tokens != "all":
        raise ValueError(
            f"statistics.tokens: {settings.tokens}: a study counts all tokens; write tokens: all in params.yaml"
        )
    if histogram and settings.histogram_share != 1:
        raise ValueError(
            f"statistics.histogram_share: {settings.histogram_share:g}: a study's histograms count all tokens; "
            "write histogram_share: 1, or study schemes with activations: {range: minmax}"
        )
