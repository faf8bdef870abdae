"""The tokenizer of the tiny models: byte-level BPE, trained on a few sentences."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 320
SENTENCES = (
    "A router sends each token to the experts that should read it, and no token is lost on the way.",
    "Round a weight to the nearest code, then let the next weights make up for the error.",
    "The state of a recurrent layer carries what it has read; attention looks it up again.",
    "An image becomes a row of patches, and every patch stands where a word could stand.",
    "Whoever measures before and after knows what a change was worth.",
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files into a model's folder."""
    PreTrainedTokenizerFast(tokenizer_object=trained(), **SPECIAL, model_max_length=128).save_pretrained(folder)


@lru_cache(maxsize=1)
def trained() -> Tokenizer:
    """The tokenizer; it puts `<s>` before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def samples() -> list[list[int]]:
    """Token ids of the sentences: the calibration samples of every test."""
    return [tokenizer_ids for text in SENTENCES if (tokenizer_ids := trained().encode(text).ids)]
