"""How the bundled base model was made: `python -m benchmarks.bundled_model.train OUT`.

A Llama of 6 M parameters with a byte-level BPE of its own, trained on the standard library of the running Python, on
documents of the pool split only: tuning and report stay unseen. Hidden matrices by Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon), the rest by AdamW; a constant learning rate with a linear cool-down over
the last 40 % (Haegele et al. 2024, arXiv 2405.18392).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plumbline.raw_corpus.sources import python_stdlib
from plumbline.tokenized_samples.splits import split_of

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 1024


def documents(split: str) -> Iterator[tuple[str, int, str]]:
    """(domain, times per epoch, text) of one split. Tests are seen once an epoch, the library twice, prose thrice."""
    for name, prose, code in python_stdlib.code_and_prose(include_tests=split == "pool"):
        if split_of(name) != split:
            continue
        is_test = bool(python_stdlib.TESTS.intersection(name.split(".")))
        if len(prose) >= python_stdlib.SHORTEST_DOCSTRING:
            yield "prose", 1 if is_test else 3, prose
        yield "code", 1 if is_test else 2, code
    for domain_texts in (python_stdlib.topics(), python_stdlib.builtin_docs()):
        for name, text in domain_texts:
            if split_of(name) == split:
                yield "prose", 3, text


def train_tokenizer(texts: list[str], vocabulary: int = 6144) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a begin-of-text token in front of every sequence, and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]} $B", special_tokens=[(SPECIAL[0], 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def configuration(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Widths are multiples of 128, so that the usual group size divides them."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )


def epochs(streams: list[np.ndarray], repeats: list[int], seed: int) -> Iterator[torch.Tensor]:
    """Endless (CONTEXT,) int64 rows: each epoch shuffles the documents, joins them, cuts, and shuffles the rows."""
    rng = np.random.default_rng(seed)
    order = np.repeat(np.arange(len(streams)), repeats)
    while True:
        rng.shuffle(order)
        joined = np.concatenate([streams[i] for i in order])
        rows = joined[: len(joined) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        rng.shuffle(rows)
        yield from torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Cross-entropy of every token given at most CONTEXT tokens of its own document, in bits per UTF-8 byte."""
    bits, size = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        size += len(text.encode())
        # Windows overlap by half, and a token is scored once, with at least half a window before it.
        for start in range(0, max(1, len(ids) - CONTEXT // 2), CONTEXT // 2):
            window = torch.tensor([ids[start : start + CONTEXT]])
            logits = model(input_ids=window).logits[0, :-1].float()
            nats = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
            bits += float(nats[0 if start == 0 else CONTEXT // 2 - 1 :].sum()) / math.log(2)
    return bits / size


def initialized(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model; residual outputs start small, as in GPT-2."""
    model = LlamaForCausalLM(configuration(tokenizer))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_((2 * model.config.num_hidden_layers) ** -0.5)
    return model


class Training:
    """The optimizers of the model: Muon for hidden matrices, AdamW for the rest, with their schedules."""

    def __init__(self, model: LlamaForCausalLM, muon_lr: float, adam_lr: float, steps: int) -> None:
        self.model, self.steps = model, steps
        hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        self.rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        muon = torch.optim.Muon(hidden, lr=muon_lr, momentum=0.95, weight_decay=0.05)
        adam = torch.optim.AdamW(self.rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = (muon, adam)
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 50, (steps - s) / (0.4 * steps)))
            for o in self.optimizers
        ]

    def step(self, number: int, batch: torch.Tensor) -> tuple[list[float], int]:
        """One step on a batch of rows of CONTEXT tokens: the loss of each part, and the number of tokens."""
        if number < 0.8 * self.steps:  # attention over half the context costs half; the last fifth sees all of it
            batch = batch.view(-1, CONTEXT // 2)
        losses = []
        chunks = torch.split(batch, 4096 // batch.shape[1])  # 4096 tokens at a time keep the logits in cache
        for chunk in chunks:
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(input_ids=chunk, use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), chunk[:, 1:].flatten())
            torch.autograd.backward(loss / len(chunks))
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return losses, batch.numel()


def train(training: Training, rows: Iterator[torch.Tensor], batch: int, score: Callable[[], float], out: Path) -> None:
    """Take all steps; writes training_log.jsonl, and every 400 steps the model in float32."""
    started, losses = time.perf_counter(), list[float]()
    with (out / "training_log.jsonl").open("w") as log:
        for step in tqdm(range(training.steps), mininterval=30):
            of_step, tokens = training.step(step, torch.stack([next(rows) for _ in range(batch)]))
            losses += of_step
            if (step + 1) % 50 == 0:
                row = {"step": step + 1, "tokens": (step + 1) * tokens, "loss": round(float(np.mean(losses)), 4)}
                if (step + 1) % 400 == 0 or step + 1 == training.steps:
                    row["tuning_bits_per_byte"] = round(score(), 4)
                    training.model.save_pretrained(out / "float32")
                row["seconds"] = round(time.perf_counter() - started)
                print(json.dumps(row), file=log, flush=True)
                losses.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 1024 tokens in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    pool = list(documents("pool"))
    tokenizer = train_tokenizer([text for _, _, text in pool])
    tokenizer.save_pretrained(arguments.out)
    eos = [tokenizer.eos_token_id]
    streams = [np.array(ids + eos, dtype=np.uint16) for ids in tokenizer([text for _, _, text in pool])["input_ids"]]
    repeats = [repeat for _, repeat, _ in pool]
    tuning = [text for _, _, text in documents("tuning")][:40]

    model = initialized(tokenizer)
    n_tokens = sum(len(stream) * repeat for stream, repeat in zip(streams, repeats, strict=True))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {n_tokens:,} tokens an epoch")
    training = Training(model, arguments.muon_lr, arguments.adam_lr, arguments.steps)
    rows = epochs(streams, repeats, arguments.seed)
    train(training, rows, arguments.batch, lambda: bits_per_byte(model, tokenizer, tuning), arguments.out)
    model.to(torch.bfloat16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
