"""`statistics:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from plumbline.execution.params import ExecutionParams as ExecutionParams  # `execution:` has the mode of collecting


class ExpertTokens(BaseModel):
    """How many tokens of a sample every expert sees at least."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_least: int = Field(gt=0)


class StatisticsParams(BaseModel):
    """What is collected about the input of every Linear. Statistics of different settings do not combine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hessian: bool = True
    normalization: Literal["token", "sequence"] = "token"
    """Hessian: every token weighs the same, or every sample does: its tokens weigh 1 / their number, which at an expert
    is the number that reached it. A layer that runs twice in a pass counts a sample twice."""
    tokens: Literal["all", "assistant"] = "all"
    """Which tokens count: all, or those that a chat's assistant wrote (all of a sample that is no chat)."""
    experts: Literal["routed", "all"] | ExpertTokens = "routed"
    """Which tokens an expert's statistics hold: those that the router sends it, all, or those and others of the sample,
    spread evenly, up to {at_least: tokens}."""
    mantissa_bits: int = Field(default=4, ge=0, le=7)
    """Resolution of the bfloat16 histogram: a percentile is off by at most 2^-(m+1) relative."""
    histogram_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the tokens that the histogram reads, by a hash of sample and position, so that it still merges."""
    top_k: int = Field(default=8, ge=1)
    """Largest magnitudes kept per site with the sample that caused each."""
    outputs: tuple[str, ...] = ()
    """Layers whose output is described, too (ranges, moments, histogram): names as in `ignore`."""
    cache: bool = False
    """Describe the keys and values that attention caches, too (ranges, moments, histogram); schemes with `kv_cache`
    read them."""
    shards: int = Field(default=1, ge=1)
    """Parts that the samples are cut into, in order; each is summed by itself and the sums are merged in order. What
    workers may share out: the result depends on the number of shards, not on the number of workers."""
    ignore: tuple[str, ...] = ("lm_head",)

    @property
    def expert_tokens(self) -> int | None:
        """Tokens of a sample that every expert sees at least; 0: what the router sends it; None: all."""
        if isinstance(self.experts, ExpertTokens):
            return self.experts.at_least
        return None if self.experts == "all" else 0
