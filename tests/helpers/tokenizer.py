"""Byte-level tokenizers: one token per byte, so that the ids can be written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"


def make_tokenizer(bos: bool = True, eos: bool = False, template: str | None = TEMPLATE) -> Any:
    """A chat model's tokenizer, with begin and end tokens added as asked."""
    single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    return _byte_tokenizer(special, single, bos_token="<s>", eos_token="</s>", chat_template=template)


def write_byte_tokenizer(folder: Path, begin: str = "<s>") -> Path:
    """Save a base model's tokenizer, which adds a begin token of id 0, in a folder."""
    _byte_tokenizer([begin], f"{begin} $A", bos_token=begin).save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


def _byte_tokenizer(special: list[str], single: str, **tokens: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = [(token, ids[token]) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
