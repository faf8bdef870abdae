"""The device that a model is loaded to."""

from __future__ import annotations

import torch

from plumbline.base_model.params import Device


def torch_device(device: Device) -> Device:
    """ "cpu" or "cuda" for `model.device` in params.yaml.

    Raises:
        ValueError: "cuda" without a GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device in params.yaml: found 'cuda', but PyTorch sees no GPU; say 'auto' or 'cpu'")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
