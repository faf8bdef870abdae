"""Updates the statistics of a calibration set that changed by a few samples, with forward passes over those alone.

Samples that left are run once more, so that their share of the sums can be subtracted; samples that came are run for
the first time. Integers, extremes and the origins of the largest magnitudes equal those of a collection of the whole
set, bit by bit. Sums may not: undoing a floating-point addition keeps its rounding error, about 1e-16 of the total. So
the pipeline never updates by itself: an artifact would depend on an earlier one and not on its inputs alone. The header
of an updated folder names the calibration set that it was updated from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, merge, retract
from plumbline.activation_stats.source import read_source
from plumbline.activation_stats.store import HEADER, load, save
from plumbline.activation_stats.totals import Masks, Sample
from plumbline.artifact import read_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.progress import Bar


@dataclass(frozen=True)
class Change:
    """The samples in which two sets differ, by id."""

    left: tuple[str, ...]
    came: tuple[str, ...]


def change(previous: ActivationStats, samples: Sequence[Sample]) -> Change:
    """The samples that left and those that came, each in order of their ids."""
    before, after = set(previous.sample_ids), {sample_id for sample_id, _ in samples}
    return Change(tuple(sorted(before - after)), tuple(sorted(after - before)))


def updated(
    previous: ActivationStats,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    settings: StatisticsParams,
    *,
    leaving: Sequence[Sample],
    base_model_digest: str,
    fingerprint: str,
    progress: Callable[[int], object] | None = None,
    masks: Masks | None = None,
) -> ActivationStats:
    """Statistics of `samples`, updated from those of a similar set; only samples that left or came are run.

    Args:
        samples: all samples of the new set.
        leaving: token ids of (at least) the samples that left, which statistics do not hold.
        progress: called after each forward pass with the number of tokens.

    Returns:
        Statistics of exactly these samples: sums within 1e-9 relative, all else bit by bit.

    Raises:
        ValueError: model, tokenization or settings differ from those of `previous`; no sample in common; token ids of a
            sample that left are missing; or as `collect`, `merge` and `retract`.
    """
    _require_same_origin(previous, base_model_digest, fingerprint, settings)
    changes = change(previous, samples)
    if len(changes.left) == len(previous.sample_ids):
        raise ValueError("no sample of the previous statistics is in the new set: collect anew, it costs the same")
    ids_of_leaving = dict(leaving)
    if unknown := [sample_id for sample_id in changes.left if sample_id not in ids_of_leaving]:
        raise ValueError(
            f"{len(unknown)} samples left, first {unknown[0]}, and their token ids are not given: without another "
            "forward pass their share cannot be taken out"
        )
    run = partial(
        collect,
        model,
        settings=settings,
        base_model_digest=base_model_digest,
        fingerprint=fingerprint,
        progress=progress,
        masks=masks,
    )
    stats = previous
    if changes.left:
        stats = retract(stats, run([(sample_id, ids_of_leaving[sample_id]) for sample_id in changes.left]))
    if changes.came:
        came = set(changes.came)
        stats = merge(stats, run([sample for sample in samples if sample[0] in came]))
    return stats


def _require_same_origin(
    previous: ActivationStats, base_model_digest: str, fingerprint: str, settings: StatisticsParams
) -> None:
    for what, before, now in (
        ("base model", previous.base_model_digest, base_model_digest),
        ("tokenization fingerprint", previous.fingerprint, fingerprint),
        ("settings", previous.settings, settings),
    ):
        if before != now:
            raise ValueError(
                f"statistics of another origin cannot be updated: {what} {before} there, {now} asked for; collect anew"
            )


def update(previous: Path, before: Path, after: Path, base: BaseCheckpoint, out: Path) -> dict[str, Any]:
    """Write the statistics of one calibration set from those of another.

    Args:
        previous: folder of the statistics of `before`.
        before: the calibration set that `previous` was collected from.
        after: the calibration set to write statistics of.
        out: an existing folder.

    Returns:
        The numbers of samples that left, came and stayed.

    Raises:
        ValueError: the statistics are not those of `before`, or as `updated`.
    """
    header, stats = read_json(previous / HEADER), load(previous)
    old, new = read_source(before, stats.settings), read_source(after, stats.settings)
    if header["calibration_set"] != old.digest:
        raise ValueError(
            f"{previous}: statistics of the calibration set {header['calibration_set'][:12]}, found {old.digest[:12]} "
            f"in {before}"
        )
    model = base.loaded()
    changes = change(stats, new.samples)
    sizes = {sample_id: len(ids) for sample_id, ids in (*old.samples, *new.samples)}
    total = sum(sizes[sample_id] for sample_id in (*changes.left, *changes.came))
    with Bar(total=total, unit="token", unit_scale=True, desc="activations") as bar:
        result = updated(
            stats,
            model,
            new.samples,
            stats.settings,
            leaving=old.samples,
            base_model_digest=base.digest(),
            fingerprint=new.fingerprint,
            progress=bar.update,
            masks={**(old.masks or {}), **(new.masks or {})},
        )
    provenance = {key: value for key, value in header["base_model"].items() if key != "digest"}
    save(result, out, {"base_model": provenance, "calibration_set": new.digest, "updated_from": old.digest})
    return {
        "left": len(changes.left),
        "came": len(changes.came),
        "stayed": len(new.samples) - len(changes.came),
    }
