"""`model:` in params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Device = Literal["auto", "cpu", "cuda"]


class ModelParams(BaseModel):
    """The base model: any Hugging Face causal LM, by hub id or by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "llama-stdlib-6m"
    """A folder (absolute, or relative to the workspace), a hub id, or `llama-stdlib-6m`, the bundled model."""
    revision: str | None = None
    """Commit of the hub repository; a branch name would let the model change under the same parameters."""
    chat_template: str | None = None
    """A file with a Jinja template (absolute, or relative to the workspace), for a model without one or in place of its
    own. It decides the tokens of chats, is part of the fingerprint, and is exported with every quantized model."""
    device: Device = "auto"
    trust_remote_code: bool = False
    dequantize: bool = False
    """Take the dequantized weights of a checkpoint in FP8, MXFP4 or compressed-tensors as the base model. Without it,
    quantized weights are refused: they carry rounding errors that no later step sees."""
