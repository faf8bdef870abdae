"""Plumbline side by side with other quantizers, as shipped and alike: `python -m benchmarks.peers`.

    python -m benchmarks.smollm2 FOLDER
    python -m benchmarks.peers --smollm2 FOLDER --texts FILE [--out FILE]

Every tool quantizes the same model on the same samples in a process of its own, with the recipes of recipes.py: what it
does by default, the same settings in all, and the best we know of. transformers loads the result for one evaluation on
held-out documents. Models: the bundled one, two random ones (times only, because random tokens make KL meaningless),
and SmolLM2-135M with a text of articles such as WikiText's validation split, if both are named.

Peers run in environments of their own, .plumbline/peers/venv-NAME, made on first use. Finished measurements and models
are stored in .plumbline/peers, and an interrupted run resumes there; --fresh starts anew. On a processor without
bfloat16 units, Plumbline multiplies in float32 and llm-compressor does not, which alone gives a factor of 6 or more;
--dtype float32 compares them without it, and is the default for SmolLM2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.peers.articles import NAME as REAL
from benchmarks.peers.articles import Articles, subject_of_articles
from benchmarks.peers.contest import LIMIT, Contest
from benchmarks.peers.environments import REQUIREMENTS, WORK, Unavailable
from benchmarks.peers.evaluation import Judge
from benchmarks.peers.recipes import DEFAULT, LLM_COMPRESSOR, PLUMBLINE, TOOLS, Format, recipes, too_long
from benchmarks.peers.results import Results
from benchmarks.peers.speed import ONE, sweep, turns
from benchmarks.peers.subjects import BUNDLED_NAME, SUBJECTS, Subject, subject
from benchmarks.peers.tables import Row, caption, quality_table, sweep_table, times_table
from plumbline.base_model.folder import base_model_digest


def rows(contest: Contest, judge: Judge, form: Format, arguments: argparse.Namespace) -> Iterator[Row]:
    """A row per tool and recipe; what does not run is a row with its reason."""
    about = contest.about
    for tool in arguments.tools:
        for recipe in recipes(tool, form):
            if recipe not in (arguments.recipes or [recipe]):
                continue
            if not about.says_something and (recipe != DEFAULT or tool not in (PLUMBLINE, LLM_COMPRESSOR)):
                continue
            reason = None if arguments.all else too_long(tool, recipe, about.name)
            try:
                if reason is not None:
                    raise Unavailable(reason)
                figures = contest.row(tool, form, recipe)
            except Unavailable as problem:
                yield Row(tool, recipe, reason=str(problem))
                continue
            folder = contest.model(tool, form, recipe)
            decided_by = {"weights": base_model_digest(folder), "held_out": about.held_out.digest}
            key = f"{about.name}: {tool}, {form.name}, {recipe}: quality"
            yield Row(tool, recipe, figures, contest.results.get(key, decided_by, partial(judge.sums, folder)))


def of_subject(contest: Contest, arguments: argparse.Namespace) -> Iterator[str]:
    """Sections of Markdown: quality per format, then the times."""
    about, judge = contest.about, Judge(contest.about)
    for bits in arguments.bits if about.says_something else arguments.bits[:1]:
        form = Format(bits, about.group_size)
        found = list(rows(contest, judge, form, arguments))
        sums = next((row.sums for row in found if row.sums is not None), None)
        table = "\n".join(quality_table(found, about.says_something))
        yield f"## {about.name}, {form.name}\n\n{table}\n\n{'' if sums is None else caption(sums)}"
    if arguments.no_speed or about.name == REAL:
        return
    runs = turns(contest, arguments.repeats)
    parts = ["\n".join(times_table({about.name: runs}))]
    if about.name == BUNDLED_NAME and not arguments.no_sweep:
        parts.append("\n".join(sweep_table(sweep(contest), runs)))
    body = "\n\n".join(parts)
    yield f"## {about.name}, time of {ONE}, alike\n\n```\n{body}\n```"


def subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The subjects named on the command line, one after the other."""
    for name in arguments.subjects:
        if name == REAL:
            settings = Articles(
                arguments.smollm2, arguments.texts, arguments.smollm2_samples, documents=arguments.documents
            )
            yield subject_of_articles(settings, WORK, arguments.dtype or "float32")
        else:
            yield subject(name, arguments.samples, arguments.length, WORK, arguments.dtype or "bfloat16")


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=(*SUBJECTS, REAL), metavar="NAME")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2, from benchmarks/smollm2.py")
    parser.add_argument("--texts", type=Path, help="its text: articles in WikiText's form")
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default, like, best or light (all)")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--samples", type=int, default=128, help="of the small models (128)")
    parser.add_argument("--smollm2-samples", type=int, default=32, help="of SmolLM2 (32)")
    parser.add_argument("--documents", type=int, default=24, help="that SmolLM2 is judged on (24)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample (512)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the times (3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the models (bfloat16; SmolLM2: float32)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds after which a run is stopped ({LIMIT})")
    parser.add_argument("--all", action="store_true", help="run what takes hours, too")
    parser.add_argument("--no-speed", action="store_true", help="skip the times")
    parser.add_argument("--no-sweep", action="store_true", help="skip the eight schemes")
    parser.add_argument("--fresh", action="store_true", help="discard finished measurements")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    arguments = parser.parse_args()
    if (arguments.smollm2 is None) != (arguments.texts is None):
        parser.error("--smollm2 and --texts go together: name a folder and a text, or neither")
    if arguments.subjects is None:
        arguments.subjects = [*SUBJECTS, *([] if arguments.smollm2 is None else [REAL])]
    if REAL in arguments.subjects and arguments.smollm2 is None:
        parser.error(f"{REAL} needs --smollm2 FOLDER and --texts FILE")
    return arguments


def quiet() -> None:
    """Disable progress bars and advice of libraries."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def main() -> None:
    arguments = command_line()
    quiet()
    started = time.perf_counter()
    WORK.mkdir(parents=True, exist_ok=True)
    sections = []
    for about in subjects(arguments):
        folder = WORK / about.name / f"{about.samples.name}-{arguments.dtype or 'own'}"
        file = folder / "results.json"
        if arguments.fresh:
            file.unlink(missing_ok=True)
        contest = Contest(about, arguments.threads, folder, Results(file), arguments.limit)
        for section in of_subject(contest, arguments):
            print(f"\n{section}\n", flush=True)
            sections.append(section)
    pins = "; ".join(f"{tool}: {', '.join(REQUIREMENTS[tool])}" for tool in arguments.tools if tool in REQUIREMENTS)
    foot = f"{arguments.threads} threads. {pins}"
    print(f"{foot}\n\nthis command took {(time.perf_counter() - started) / 60:.1f} minutes")
    if arguments.out is not None:
        arguments.out.write_text("\n\n".join([*sections, foot]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
