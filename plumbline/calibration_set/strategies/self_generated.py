"""Calibration texts that the base model generates itself, without any document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.strategies.base import Pool, Selection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from plumbline.calibration_set.methods.own_text import Text

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Criteria:
    """What a text must meet to be used."""

    least: int
    min_distinct: int
    ngram: int
    max_repeated: float

    def repeated(self, ids: NDArray[np.int32]) -> float:
        """The share of repeated n-grams in the whole text or in its last quarter, whichever is larger."""
        from plumbline.calibration_set.methods.own_text import repeated_share

        return max(repeated_share(part, self.ngram) for part in (ids, ids[-(-3 * len(ids) // 4) :]))

    def fault(self, text: Text, start: int) -> str:
        """The reason to drop the text; empty: there is none. The first `start` tokens are not the model's."""
        own = text.ids[start:]
        if len(text.ids) < self.least:
            return "ended_early"
        if len(np.unique(own)) < self.min_distinct:
            return "few_distinct_tokens"
        return "repeats_itself" if self.repeated(own) > self.max_repeated else ""


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    length: Annotated[int, Field(ge=2)] | None = None,
    shortest: Annotated[int, Field(ge=1)] | None = None,
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        2.0,
        1.75,
        1.5,
        1.25,
        1.0,
    ),
    tries: Annotated[int, Field(ge=1)] = 4,
    min_distinct: Annotated[int, Field(ge=1)] = 5,
    ngram: Annotated[int, Field(ge=1)] = 4,
    max_repeated: Annotated[float, Field(ge=0, le=1)] = 0.7,
) -> Selection:
    """Let the base model generate the samples, from the special tokens that every sample begins with.

    If samples begin with none, every text starts with another token: a stride over the vocabulary from a seeded
    offset, so that any number of texts spreads evenly. Degenerate texts are dropped and counted.

    Options:
        length: tokens per sample, including its start; null: the median of the reference (production, or the tuning
            split if there is none). At most the model's context.
        shortest: a text that the model ends with fewer tokens is dropped; null: half of `length`. The end token is
            removed, as the samples of documents have none.
        temperatures: of the first tokens in turn; the last one applies to the rest. A hot start makes the texts
            different, and temperature 1 is the model's own distribution.
        tries: most attempts per requested sample.
        min_distinct: a text with fewer distinct tokens is dropped.
        ngram, max_repeated: a text is dropped if more than this share of its n-grams, or of those of its last quarter,
            occurred earlier in it. (Of 557 samples of the bundled corpus none has more than 0.64.)

    Optimises: nothing; it samples the model's own distribution, which may differ from production's. The
    representativeness checks measure how far.
    Cost: n x length tokens, a forward pass of one token each for a batch, on one thread of a CPU, since a text depends
    on every last bit before it. The same seed gives the same texts with any number of threads; another processor,
    device or version of torch may give other texts. A larger set begins with the smaller one.
    Source: self-calibration, arXiv 2410.17170, with the decaying temperature of Carlini et al., 2012.07805; LLM-QAT,
    2305.17888; start tokens over the vocabulary and the test of distinct tokens as in NNCF's text generation.

    Raises:
        ValueError: no attempt passed, or `shortest` is more than `length`.
    """
    model = pool.load_model()
    requested, context = _length(pool, model, length)
    tokens = min(requested, context)
    least = -(-tokens // 2) if shortest is None else shortest
    if least > tokens:
        limit = f"the model's context of {context}" if tokens < requested else f"length {tokens}"
        raise ValueError(f"self_generated: `shortest` in params.yaml is {least}, more than {limit}; lower it")
    criteria = Criteria(least, min_distinct, ngram, max_repeated)
    writer = Writer(pool, model, int(rng.integers(2**63)), tokens, temperatures)
    texts, attempts, dropped = _passing(writer, criteria, n, tries * n)
    if not texts:
        raise ValueError(
            f"self_generated: none of {attempts} texts passed ({_counts(dropped)}); give another `temperatures` (near "
            "1), or a `shortest`, `min_distinct` or `max_repeated` that this model can meet"
        )
    notes: dict[str, Any] = {
        "length": tokens,
        "shortest": least,
        "temperatures": list(temperatures),
        "start": "the special tokens of every sample" if pool.special_prefix else "tokens strided over the vocabulary",
        "attempts": attempts,
        "dropped": dict(sorted(dropped.items())),
        "dropped_share": round(sum(dropped.values()) / attempts, 4),
    }
    if len(texts) < n:
        notes["short"] = f"{len(texts)} of {attempts} texts passed ({_counts(dropped)}); raise `tries`"
    prefix = pool.special_prefix or 1
    reasons = [_reason(attempt, text, prefix, temperatures[-1], criteria) for attempt, text in texts]
    written = {position: text.ids for position, (_, text) in enumerate(texts)}
    return Selection(np.full(len(texts), -1, np.int64), reasons, written=written, notes=notes)


def _reason(attempt: int, text: Text, prefix: int, temperature: float, criteria: Criteria) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "start": text.ids[:prefix].tolist(),
        "temperature": temperature,
        "mean_log_probability": round(text.log_probability, 4),
        "distinct_share": round(len(np.unique(text.ids)) / len(text.ids), 4),
        "repeated_share": round(criteria.repeated(text.ids[prefix:]), 4),
        "ended_itself": text.ended,
    }


def _length(pool: Pool, model: PreTrainedModel, length: int | None) -> tuple[int, int]:
    """The requested length, and the longest that the model reads."""
    like = pool.reference if len(pool.reference) else pool
    requested = int(np.median(like.lengths)) if length is None else length
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return max(2, requested), int(context or max(2, requested))


class Writer:
    """Generates attempts in whole batches, so that attempt i depends on i and the seed alone."""

    def __init__(
        self, pool: Pool, model: PreTrainedModel, seed: int, tokens: int, temperatures: tuple[float, ...]
    ) -> None:
        self.model, self.seed, self.tokens, self.temperatures = model, seed, tokens, temperatures
        self.never, self.end = _special_tokens(model)
        self.start = _starts(pool, model, seed, self.never | self.end)

    def batch(self, first: int) -> tuple[list[Text], int]:
        """The texts of a batch of attempts from number `first` on, and the number of tokens of their start."""
        from plumbline.calibration_set.methods.own_text import BATCH, write

        attempts = range(first, first + BATCH)
        starts = np.stack([self.start(attempt) for attempt in attempts])
        steps = max(0, self.tokens - starts.shape[1])
        uniforms = np.stack([_uniforms(self.seed, attempt, steps) for attempt in attempts])
        return write(self.model, starts, uniforms, self.temperatures, self.never, self.end), starts.shape[1]


def _passing(writer: Writer, criteria: Criteria, n: int, most: int) -> tuple[list[tuple[int, Text]], int, Counter[str]]:
    """The first n texts that pass, with the number of their attempt; attempts checked; failures by reason."""
    from plumbline.progress import Bar

    taken: list[tuple[int, Text]] = []
    seen: set[bytes] = set()
    dropped: Counter[str] = Counter()
    attempt = 0
    with Bar(total=n, unit="sample", desc="own texts") as bar:
        while len(taken) < n and attempt < most:
            texts, start = writer.batch(attempt)
            for text in texts:
                if len(taken) == n or attempt == most:
                    break
                fault = criteria.fault(text, start) or ("written_before" if text.ids.tobytes() in seen else "")
                if fault:
                    dropped[fault] += 1
                else:
                    taken.append((attempt, text))
                    seen.add(text.ids.tobytes())
                    bar.update()
                attempt += 1
    return taken, attempt, dropped


def _uniforms(seed: int, attempt: int, steps: int) -> NDArray[np.float64]:
    """The uniform numbers of an attempt, one per token; a longer text begins with the shorter one."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, attempt]))).random(steps)


def _special_tokens(model: PreTrainedModel) -> tuple[frozenset[int], frozenset[int]]:
    """The tokens that no text may contain (begin, pad), and those that end one."""

    def ids(name: str) -> frozenset[int]:
        settings = (model.generation_config, model.config.get_text_config())
        token_ids = next((value for value in (getattr(part, name, None) for part in settings) if value is not None), ())
        return frozenset([token_ids] if isinstance(token_ids, int) else token_ids)

    end = ids("eos_token_id")
    return (ids("bos_token_id") | ids("pad_token_id")) - end, end


def _starts(
    pool: Pool, model: PreTrainedModel, seed: int, special: frozenset[int]
) -> Callable[[int], NDArray[np.int32]]:
    """A function from the number of an attempt to the tokens it starts with."""
    if pool.special_prefix:
        rows = np.flatnonzero(pool.table["n_special"].to_numpy())
        shared = pool.input_ids(rows[:1])[0][: pool.special_prefix].astype(np.int32)
        return lambda attempt: shared
    width = model.get_input_embeddings().weight.shape[0]
    usual = np.array([token for token in range(width) if token not in special], dtype=np.int32)
    stride = next(
        step for step in range(max(1, round(GOLDEN * len(usual))), 2 * len(usual) + 2) if np.gcd(step, len(usual)) == 1
    )
    return lambda attempt: usual[[(seed + attempt * stride) % len(usual)]]


def _counts(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()))
