"""`execution:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ExecutionParams(BaseModel):
    """`execution:` in params.yaml: how and where steps compute. It changes no byte and makes nothing stale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["auto", "whole", "layerwise"] = "auto"
    """The whole model in memory, or one decoder layer at a time; auto: layerwise where the whole would not fit."""
    hidden_gib: float = Field(default=4.0, ge=0)
    """Layerwise: hidden states that each worker keeps in memory, in GiB; the rest waits on disk."""
    executor: Literal["local", "ray"] = "local"
    """What runs the workers: processes of this machine, or Ray (the optional extra `ray`)."""
    workers: int = Field(default=1, ge=1)
    """Processes on each machine that share out what is many: calibration sets, their statistics (by set, or by the
    parts that `statistics.shards` says), models, evaluations. Each holds a model in memory."""
    address: str | None = Field(default=None, min_length=1)
    """Ray: a running cluster, by HOST:PORT or `auto` for the one of this machine; all its nodes see the workspace at
    the same path. None: Ray is started on this machine, and stopped again."""

    @model_validator(mode="after")
    def _only_ray_has_an_address(self) -> ExecutionParams:
        if self.address is not None and self.executor != "ray":
            raise ValueError(
                f"address {self.address!r} is of a Ray cluster, but executor is {self.executor!r}; write "
                "`executor: ray`, or take address out"
            )
        return self

    @property
    def shares_out(self) -> bool:
        """Whether other processes compute."""
        return self.workers > 1 or self.executor == "ray"

    def __str__(self) -> str:
        """For example `2 local processes`, `2 Ray workers`, `Ray at auto`."""
        if self.address is not None:
            return f"Ray at {self.address}"
        kind = ("Ray worker", "Ray workers") if self.executor == "ray" else ("local process", "local processes")
        return f"{self.workers} {kind[self.workers > 1]}"
