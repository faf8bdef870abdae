"""Finds the language model within a model that also sees or hears."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the part that reads and continues text: the model's own, or one within it."""
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    return config


def language_part(model: PreTrainedModel) -> str:
    """Module name of the language model, such as "model.language_model"; "" for a model that is nothing else.

    It is the outermost model that was built from the text configuration. Its vocabulary projection may be outside of
    it (`lm_head` beside `model` in most, `language_model.lm_head` in Llama 4).
    """
    return next(iter(_of_text(model)), "")


def hidden_states_network(model: PreTrainedModel) -> nn.Module:
    """The module that computes the last hidden states from token ids, without vocabulary logits.

    It is the model's own base model, which prepares masks and positions. Where it has none (Llama 4's outer model), it
    is the innermost model that was built from the text configuration.
    """
    if model.base_model is not model:
        return model.base_model
    return next(reversed(_of_text(model).values()), model)


def _of_text(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The models within a model that were built from its text configuration, by name, the outer before the inner."""
    text = text_config(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.config is text
    }
