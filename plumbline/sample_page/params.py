"""`pages:` in params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class PageParams(BaseModel):
    """What the pages of calibration sets show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: bool = True
    """Whether the samples' texts are on the pages and in the terminal. False for a confidential corpus: ids, files,
    rows, lengths and reasons remain."""
