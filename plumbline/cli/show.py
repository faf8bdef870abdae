"""`plumbline show`: the samples of a calibration set, two sets side by side, and what was rejected."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    from plumbline.sample_page.rejected import Rejections
    from plumbline.sample_page.shown import ShownSample, ShownSet

BESIDE = 9
"""Lines of the terminal that are not samples."""


@click.command()
@click.argument("choice", required=False)
@click.option("--against", metavar="CHOICE", help="A second set, to compare with.")
@click.option("--sample", metavar="ID", help="Show one sample in full: its position, or the beginning of its id.")
@click.option("--rejected", is_flag=True, help="What did not become a sample, and why, instead of a set.")
@click.option("--all", "everything", is_flag=True, help="List everything, not just what fits on the screen.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write an HTML page.")
@click.option("--texts/--no-texts", default=None, help="With the texts (default: `pages: {texts: …}` in params.yaml).")
def show(
    choice: str | None,
    against: str | None,
    sample: str | None,
    rejected: bool,
    everything: bool,
    page: Path | None,
    texts: bool | None,
) -> None:
    """Show the samples of the calibration set of CHOICE: text, document, reason, and the extremes that each sets.

    \b
    Example: plumbline show random-64
             plumbline show random-64 --sample 3
             plumbline show random-64 --against clusters-64 --page sets.html
             plumbline show --rejected
    """
    from plumbline.params import load_params

    root = workspace_root()
    params = load_params(root)
    with_texts = params.pages.texts if texts is None else texts
    if rejected:
        if choice or against or sample:
            raise click.UsageError("--rejected is about the corpus: leave CHOICE, --against and --sample out")
        _show_rejected(root, with_texts, everything, page)
        return
    if choice is None:
        names = ", ".join(sorted(path.name for path in (root / "data/calibration_set").glob("*")))
        raise click.UsageError(f"Missing argument 'CHOICE' (there: {names or 'none yet; plumbline run'}).")
    from plumbline.base_model.checkpoint import BaseCheckpoint

    tokenizer = BaseCheckpoint.of(params.model, root).tokenizer() if with_texts else None
    sets = [_read(root, name, tokenizer) for name in (choice, against) if name is not None]
    if page is not None:
        from plumbline.sample_page.page import render

        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(*sets), encoding="utf-8")
        click.echo(f"{page}: {', '.join(f'{len(each.samples)} samples of {each.name}' for each in sets)}")
    elif sample is not None:
        click.echo(_in_full(sets[0], sample))
    elif against is not None:
        click.echo("\n".join(_compared(sets[0], sets[1], everything)))
    else:
        click.echo("\n".join(_listed(sets[0], everything)))


def _read(root: Path, name: str, tokenizer: Any | None) -> ShownSet:
    """A set of the workspace by its choice's name; texts come from its own tokens.

    Raises:
        ValueError: there is no such set.
    """
    from plumbline.sample_page.shown import read_shown_set

    folder = root / "data/calibration_set" / name
    if not (folder / "samples.parquet").is_file():
        there = sorted(path.name for path in folder.parent.glob("*") if (path / "samples.parquet").is_file())
        fix = "choose one of these, or run `plumbline run` to make it" if there else "make one with `plumbline run`"
        raise ValueError(f"no calibration set {name!r} (there: {', '.join(there) or 'none'}); {fix}")
    corpus = root / "data/raw_corpus"
    return read_shown_set(
        folder,
        corpus if (corpus / "manifest.json").is_file() else None,
        tokenizer,
        root / "data/activation_stats" / name,
    )


# ---------------------------------------------------------------------------------------------------------------------
# In the terminal


def _fitting(total: int, lines: int, everything: bool) -> int:
    """How many entries of so many lines fit on the screen."""
    if everything:
        return total
    return min(total, max(2, (shutil.get_terminal_size().lines - BESIDE) // lines))


def _cut(line: str) -> str:
    """The line as far as the terminal is wide."""
    from plumbline.text_layout import printable

    width = shutil.get_terminal_size().columns
    line = printable(line)
    return line if len(line) <= width else line[: width - 2] + " …"


def _wrapped(notes: Sequence[str]) -> list[str]:
    width = shutil.get_terminal_size().columns
    return [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]


def _listed(shown: ShownSet, everything: bool) -> list[str]:
    """The head of a set and its samples, two lines each, as many as fit."""
    choice, manifest = shown.manifest["choice"], shown.manifest
    domains = ", ".join(
        f"{name} {100 * part['tokens'] / manifest['tokens']:.0f} %"
        for name, part in sorted(manifest["domains"].items())
    )
    count = f"{len(shown.samples)} samples, {manifest['tokens']} tokens, {manifest['documents']} documents"
    lines = [
        _cut(f"{shown.name}: {choice['strategy']}, seed {choice['seed']}; {count}"),
        _cut(f"tokens by domain: {domains}"),
        *_wrapped(shown.notes),
        "",
    ]
    number = _fitting(len(shown.samples), 2, everything)
    for sample in shown.samples[:number]:
        lines += [_cut(_about(shown, sample)), _cut(f"      {_beginning(sample)}")]
    if rest := len(shown.samples) - number:
        lines += ["", _cut(f"{rest} more: --all. One in full: --sample ID. In a browser: --page FILE")]
    return lines


def _about(shown: ShownSet, sample: ShownSample) -> str:
    return (
        f"{sample.position:>4}  {sample.sample_id[:8]}  {sample.tokens:>5} tokens  {'; '.join(_facts(shown, sample))}"
    )


def _facts(shown: ShownSet, sample: ShownSample) -> list[str]:
    """Where a sample comes from, why it was picked, and what it sets, most important first."""
    facts = [_place(sample), sample.domain, sample.reason]
    if sample.sites:
        facts.append(f"sets {len(sample.sites)} of {shown.layers} extremes")
    return [fact for fact in facts if fact]


def _place(sample: ShownSample) -> str:
    if not sample.documents:
        return ""
    first = sample.documents[0]
    row = "" if first.row is None else f" row {first.row}"
    more = f" and {len(sample.documents) - 1} more" if len(sample.documents) > 1 else ""
    return f"{first.source}{row}{more}"


def _beginning(sample: ShownSample) -> str:
    if sample.turns is None:
        return ""
    spoken = [turn for turn in sample.turns if turn.role]
    text = " ".join(f"{turn.role}: {turn.text[:400]}" for turn in spoken[:4]) if spoken else sample.text[:400]
    return " ".join(text.split())


def _in_full(shown: ShownSet, wanted: str) -> str:
    """One sample with everything that is known of it.

    Raises:
        ValueError: no sample has this position or id, or several do.
    """
    matches = [s for s in shown.samples if str(s.position) == wanted]
    matches = matches or [s for s in shown.samples if s.sample_id.startswith(wanted)]
    if len(matches) != 1:
        raise ValueError(
            f"{len(matches)} samples of {shown.name} have the position or id {wanted!r}; give 0 to "
            f"{len(shown.samples) - 1}, or more digits of an id"
        )
    from plumbline.text_layout import printable

    [sample] = matches
    lines = [
        f"sample {sample.position} of {shown.name}",
        f"id        {sample.sample_id}",
        f"length    {sample.tokens} tokens, domain {printable(sample.domain)}",
    ]
    for document in sample.documents:
        row = "" if document.row is None else f" row {document.row}"
        lines.append(f"document  {document.doc_id}  {printable(document.source)}{row}")
    lines.append(f"picked    {printable(sample.reason) or 'the strategy gives no reason'}")
    if shown.layers:
        lines.append(f"extremes  {len(sample.sites)} of {shown.layers} layer inputs")
        lines += [f"          {site}" for site in sample.sites]
    lines += [f"note      {printable(note)}" for note in shown.notes]
    for turn in sample.turns or ():
        body = [printable(line) for line in turn.text.split("\n")]
        lines += ["", f"[{printable(turn.role)}]", *body] if turn.role else ["", *body]
    return "\n".join(lines)


def _compared(one: ShownSet, other: ShownSet, everything: bool) -> list[str]:
    """Two sets beside each other, then the samples that only one of them has."""
    from plumbline.sample_page.comparison import compare

    comparison = compare(one, other)
    label = max(len(line.label) for line in comparison.lines)
    wide = max(len(one.name), *(len(line.one) for line in comparison.lines))
    notes = [f"{each.name}: {note}" for each in (one, other) for note in each.notes]
    lines = [*_wrapped([comparison.sentence, *notes]), "", _cut(f"{'':{label}}  {one.name:{wide}}  {other.name}")]
    lines += [f"{line.label:{label}}  {line.one:{wide}}  {line.other}" for line in comparison.lines]
    room = max(2, shutil.get_terminal_size().lines - len(lines) - 6) // 2
    for each in (one, other):
        own = [sample for sample in each.samples if sample.sample_id not in comparison.shared]
        number = len(own) if everything else min(room, len(own))
        lines += ["", f"only in {each.name}: {len(own)}" + (f", the first {number}" if number < len(own) else "")]
        lines += [_cut(f"{s.position:>4}  {s.tokens:>5} tokens  {_place(s)}  {_beginning(s)}") for s in own[:number]]
    return lines


def _show_rejected(root: Path, texts: bool, everything: bool, page: Path | None) -> None:
    from plumbline.sample_page.rejected import read_rejections, render_rejections

    samples = root / "data/tokenized_samples"
    there = samples if (samples / "accounting.json").is_file() else None
    rejections = read_rejections(root / "data/raw_corpus", there, texts)
    if page is None:
        click.echo("\n".join(_rejections(rejections, everything)))
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_rejections(rejections), encoding="utf-8")
    click.echo(f"{page}: {len(rejections.rows)} of {rejections.total} rejected rows")


def _rejections(rejections: Rejections, everything: bool) -> list[str]:
    """Counts by reason, files held back, losses of tokenization, and the rows, as many as fit."""
    from plumbline.raw_corpus.source_file import REASONS
    from plumbline.tokenized_samples.windows import LOST

    lines = [f"{rejections.total} rows rejected, {rejections.documents} documents accepted"]
    lines += [_cut(f"{count:>8}  {why}: {REASONS.get(why, why)}") for why, count in rejections.counts.items()]
    if rejections.held_back:
        lines += ["", f"held back whole: {len(rejections.held_back)} files"]
        lines += [_cut(f"  {entry['file']} ({entry['rows']} rows): {entry['why']}") for entry in rejections.held_back]
    if rejections.lost:
        lines += ["", f"lost in tokenization, which gave {rejections.samples} samples:"]
        for reason, lost in sorted(rejections.lost.items()):
            counts = f"{lost['documents']} documents, {lost['samples']} samples, {lost['tokens']} tokens"
            lines.append(_cut(f"  {reason}: {counts} ({LOST.get(reason, reason)})"))
    number = _fitting(len(rejections.rows), 1, everything or not rejections.rows)
    number = number if everything else max(0, min(number, shutil.get_terminal_size().lines - len(lines) - 5))
    if number:
        lines.append("")
    for row in rejections.rows[:number]:
        where = "" if row.row is None else f" row {row.row}"
        lines.append(_cut(f"{row.file}{where}: {row.reason}{': ' + row.detail if row.detail else ''}"))
    if rest := len(rejections.rows) - number:
        lines += ["", f"{rest} more: --all. In a browser: --page FILE"]
    return lines


COMMANDS = (show,)
