"""False-alarm rate of the verdicts of `plumbline judge`: `python -m benchmarks.judged_alarms DIR`.

DIR is what `plumbline judge A B --out DIR` wrote: sums per document of two checkpoints. Each repetition draws
documents, and tosses a coin per document that exchanges the two checkpoints' figures, and one that exchanges a
checkpoint's log-likelihood with the base model's. So no checkpoint is closer to the base model than the other, nor
its perplexity another than the base model's, while documents keep their lengths, their levels and their tails: every
difference that is called is a false alarm. At most 5 % of the repetitions may have one, in each of the two families
of tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.false_alarms import interval
from plumbline.judgement.verdicts import verdicts

CALLED = ("better", "worse")
SIZES = (16, 24, 32, 64, 128, 256)


@dataclass(frozen=True)
class Alarms:
    """Repetitions with at least one difference called."""

    repetitions: int
    kl: int
    """Between the checkpoints."""
    perplexity: int
    """Of a checkpoint against the base model."""


def exchanged(one: pa.Table, other: pa.Table, documents: int, rng: np.random.Generator) -> dict[str, pa.Table]:
    """Tables of two checkpoints on some of the documents, exchanged by coins, so that nothing truly differs."""
    rows = np.sort(rng.choice(one.num_rows, documents, replace=False))
    parts = [table.take(pa.array(rows)) for table in (one, other)]
    coin = rng.random(documents) < 0.5
    tables = {}
    for name, mine, theirs in (("one", parts[0], parts[1]), ("other", parts[1], parts[0])):
        kl = np.where(coin, mine["kl"].to_numpy(), theirs["kl"].to_numpy())
        own = rng.random(documents) < 0.5
        nll, base = mine["nll"].to_numpy(), mine["nll_base"].to_numpy()
        columns = {"kl": kl, "nll": np.where(own, nll, base), "nll_base": np.where(own, base, nll)}
        kept = mine.select([column for column in mine.column_names if column not in columns])
        for column, values in columns.items():
            kept = kept.append_column(column, pa.array(values))
        tables[name] = kept
    return tables


def alarms(one: pa.Table, other: pa.Table, documents: int, repetitions: int, seed: int) -> Alarms:
    """Count false alarms of both families."""
    rng = np.random.default_rng(seed)
    kl = perplexity = 0
    for _ in range(repetitions):
        judged = verdicts(exchanged(one, other, documents, rng), "one")
        kl += judged["other"]["against"]["verdict"] in CALLED
        perplexity += any(judged[name]["perplexity"]["verdict"] in CALLED for name in judged)
    return Alarms(repetitions, kl, perplexity)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repetitions", default=1000, show_default=True)
def main(folder: Path, repetitions: int) -> None:
    """Print a row per number of documents."""
    table = pq.read_table(folder / "documents.parquet")
    names = list(dict.fromkeys(table["model"].to_pylist()))
    if len(names) < 2:
        raise click.ClickException(f"{folder} holds {len(names)} checkpoint; judge two with --out")
    one, other = (table.filter(pc.equal(table["model"], name)).drop_columns(["model"]) for name in names[:2])
    print(f"{names[0]} and {names[1]}, {one.num_rows} documents, {repetitions} repetitions\n")
    print("| documents | KL called | 95 % interval | perplexity called | 95 % interval |\n|---:|---:|---:|---:|---:|")
    for documents in (size for size in SIZES if size <= one.num_rows):
        found = alarms(one, other, documents, repetitions, seed=documents)
        cells = []
        for count in (found.kl, found.perplexity):
            low, high = interval(count, repetitions)
            cells += [f"{count / repetitions:.1%}", f"{low:.1%} to {high:.1%}"]
        print(f"| {documents} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
