"""The forecast of a run as text."""

from __future__ import annotations

from plumbline.amounts import duration, rounded, size
from plumbline.graph.forecast import Forecast


def in_short(expected: Forecast) -> str:
    """Three lines: what will be done, how long it takes here, and what it needs."""
    steps = expected.total(lambda work: work.steps)
    return "\n".join(
        [
            f"{steps:.0f} steps, {_corpus(expected)}",
            f"about {duration(expected.total(lambda work: work.seconds))} here, at the speed measured just now; "
            f"{_needs(expected)}",
            "plumbline run --plan shows it by asset; Ctrl-C stops, and the next run continues there\n",
        ]
    )


def table(expected: Forecast) -> str:
    """A line per asset, and the totals."""
    head = f"{'asset':20}{'steps':>7}{'forward passes':>16}{'time':>12}{'disk':>11}"
    rows = [
        f"{work.asset:20}{work.steps:>7}{work.passes or '':>16}{duration(work.seconds):>12}{size(work.disk):>11}"
        for work in expected.work
    ]
    steps, passes = (expected.total(of) for of in (lambda work: work.steps, lambda work: work.passes))
    seconds, disk = (expected.total(of) for of in (lambda work: work.seconds, lambda work: work.disk))
    rows.append(f"{'in all':20}{steps:>7.0f}{passes:>16,.0f}{duration(seconds):>12}{size(disk):>11}")
    return "\n".join(
        [
            head,
            *rows,
            "",
            _corpus(expected),
            f"memory: {size(expected.memory)} above the libraries' ({size(expected.free_memory)} free); "
            f"disk: {size(disk)} ({size(expected.free_disk)} free)",
            *_warnings(expected),
            "A forward pass is one sample through a model. Times: amounts over rates measured here just now, corrected",
            "by earlier runs of this workspace. Steps whose inputs turn out the same are skipped.",
        ]
    )


def _corpus(expected: Forecast) -> str:
    corpus = expected.corpus
    about = "about " if corpus.is_estimate else ""
    text = f"corpus: {about}{rounded(corpus.documents)} documents, {rounded(corpus.samples)} samples, "
    text += f"{rounded(corpus.tokens)} tokens"
    return text + (f", without {', '.join(corpus.uncounted)} (on the hub)" if corpus.uncounted else "")


def _needs(expected: Forecast) -> str:
    disk = expected.total(lambda work: work.disk)
    return "; ".join(
        [f"{size(expected.memory)} of memory above the libraries', {size(disk)} of disk", *_warnings(expected)]
    )


def _warnings(expected: Forecast) -> list[str]:
    lines = []
    if expected.memory > expected.free_memory:
        lines.append("that is more memory than is free: what can goes layer by layer, and the log says what cannot")
    if expected.total(lambda work: work.disk) > expected.free_disk:
        lines.append("that is more disk than is free")
    return lines
