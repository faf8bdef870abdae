"""`kv_cache:` of a scheme: keys and values are cached in FP8 (E4M3), by static scales."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

HOW_TO_SERVE = (
    "vLLM caches keys and values in FP8 with `--kv-cache-dtype fp8`; it takes the static scales from this checkpoint "
    "alone (it has no calculate_kv_scales any more), and for queries the scale of the keys"
)


class CacheParams(BaseModel):
    """The FP8 cache of keys and values.

    Raises:
        pydantic.ValidationError: parameters contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[8] = 8
    type: Literal["float"] = "float"
    strategy: Literal["tensor", "attn_head"] = "tensor"
    """A scale for all keys of a layer and one for all values, or one per head of keys and values."""
    range: Literal["minmax", "percentile", "unit"] = "minmax"
    """The whole range, or the range up to `percentile`, from the statistics (`statistics.cache: true`). "unit": a scale
    of 1, which engines take where a checkpoint has none."""
    percentile: float = Field(default=99.99, gt=50, le=100)

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts of the statistics that are read, as in `SchemeParams.reads`."""
        return {"minmax": ("cache",), "percentile": ("cache", "histogram"), "unit": ()}[self.range]

    @model_validator(mode="after")
    def _percentile_acts(self) -> Self:
        if self.range != "percentile" and self.percentile != type(self).model_fields["percentile"].default:
            raise ValueError("kv_cache.percentile acts with kv_cache.range: percentile only; remove it")
        return self
