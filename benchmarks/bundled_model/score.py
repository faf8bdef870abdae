"""What the bundled model is worth: `python -m benchmarks.bundled_model.score [FOLDER]`.

Bits per byte on the report split of the standard library, which the model has not seen, beside two honest rivals on the
same documents: `xz -9` (of all of them as one file, the most it can make of them) and a token trigram model with
interpolated Kneser-Ney smoothing (Chen & Goodman 1999, doi:10.1006/csla.1999.0128), trained on the documents that the
model was trained on, with the model's own tokenizer.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.bundled_model.train import bits_per_byte, documents
from plumbline.artifact import write_json
from plumbline.base_model.folder import BUNDLED


@dataclass(frozen=True)
class _Level:
    """Discounted probabilities of one n-gram order: sorted keys, and per context what is left for the lower order."""

    keys: np.ndarray
    probability: np.ndarray
    contexts: np.ndarray
    backoff: np.ndarray


def _level(ngrams: np.ndarray, weights: np.ndarray, vocabulary: int) -> _Level:
    """Absolute discounting with D = n1 / (n1 + 2 n2); keys are context * vocabulary + token."""
    n1, n2 = int((weights == 1).sum()), int((weights == 2).sum())
    discount = n1 / (n1 + 2 * n2)
    context = ngrams // vocabulary
    contexts, start = np.unique(context, return_index=True)
    total = np.add.reduceat(weights, start)
    kinds = np.diff(np.append(start, len(context)))
    of = np.repeat(np.arange(len(contexts)), kinds)
    return _Level(ngrams, (weights - discount) / total[of], contexts, discount * kinds / total)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float) -> np.ndarray:
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[position] == wanted, values[position], default)


class Trigram:
    """Interpolated Kneser-Ney: trigrams by count, bigrams and unigrams by the number of contexts they continue."""

    def __init__(self, streams: list[np.ndarray], vocabulary: int) -> None:
        self.vocabulary = v = vocabulary
        bos = np.zeros(2, np.int64)
        keys = [
            (s[:-2] * v + s[1:-1]) * v + s[2:] for s in (np.concatenate([bos, x.astype(np.int64)]) for x in streams)
        ]
        trigrams, counts = np.unique(np.concatenate(keys), return_counts=True)
        bigrams, continuations = np.unique(trigrams % (v * v), return_counts=True)
        self.three = _level(trigrams, counts.astype(float), v)
        self.two = _level(bigrams, continuations.astype(float), v)
        unigrams = np.bincount(bigrams % v, minlength=v).astype(float)
        self.one = (unigrams + 1) / (unigrams.sum() + v)  # one more each: every token is possible

    def bits(self, ids: np.ndarray) -> float:
        """Bits of the tokens after the first, each given the two before it."""
        v, s = self.vocabulary, np.concatenate([np.zeros(1, np.int64), ids.astype(np.int64)])
        a, b, c = s[:-2], s[1:-1], s[2:]
        p = self.one[c]
        for level, context in ((self.two, b), (self.three, a * v + b)):
            own = _lookup(level.keys, level.probability, context * v + c, 0.0)
            p = own + _lookup(level.contexts, level.backoff, context, 1.0) * p
        return float(-np.log2(p).sum())


def score(folder: Path) -> dict[str, dict[str, float]]:
    """Bits per byte of model, trigram and xz: per domain and over all documents of the report split."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pool = [np.array(ids) for ids in tokenizer([text for _, _, text in documents("pool")])["input_ids"]]
    trigram = Trigram(pool, len(tokenizer))
    result = {}
    held_out = [(domain, text) for domain, _, text in documents("report")]
    for domain in ("prose", "code", "all"):
        texts = [text for d, text in held_out if domain in (d, "all")]
        size = sum(len(text.encode()) for text in texts)
        result[domain] = {
            "documents": len(texts),
            "bytes": size,
            "model": round(bits_per_byte(model, tokenizer, texts), 4),
            "trigram": round(sum(trigram.bits(np.array(tokenizer(t)["input_ids"])) for t in texts) / size, 4),
            "xz": round(8 * len(lzma.compress("".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)) / size, 4),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    result = score(arguments.folder)
    print(f"bits per byte on documents that were not trained on (Python {sys.version.split()[0]})")
    print(f"{'domain':<8}{'documents':>10}{'bytes':>10}{'model':>9}{'trigram':>9}{'xz -9e':>9}")
    for domain, row in result.items():
        print(
            f"{domain:<8}{row['documents']:>10}{row['bytes']:>10}{row['model']:>9.3f}{row['trigram']:>9.3f}{row['xz']:>9.3f}"
        )
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
