"""The section `storage` of params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StorageParams(BaseModel):
    """Where the content of every artifact goes with `dvc push`, and comes back from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    remote: str | None = None
    """DVC's remote: `s3://bucket/prefix`, another URL that DVC knows, or a folder. `null`: what `.dvc/config` says. S3
    takes its credentials and the address of a store other than AWS from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."""
