"""Per-item results of tasks, and the test whether two models differ in accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from plumbline.calibration_report.bootstrap import holm
from plumbline.calibration_report.mcnemar import mcnemar

METRICS = ("acc", "exact_match")
"""Metrics of lm-evaluation-harness that are 1 for a correct item and 0 otherwise; the first that a task has is used."""
SCHEMA = pa.schema([("task", pa.string()), ("item", pa.string()), ("metric", pa.string()), ("correct", pa.bool_())])


def item_table(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> pa.Table:
    """A row per item, in order of task and item: task, item (content and its occurrence), metric, correct.

    Args:
        samples: per task the samples logged by lm-evaluation-harness; of several filters the first is used.

    Raises:
        ValueError: a task has none of these metrics, or one has a value other than 0 and 1.
    """
    rows = []
    for task, logged in samples.items():
        items = list(logged)
        items = [item for item in items if item.get("filter") == items[0].get("filter")]
        metric = next((name for name in METRICS if items and name in items[0]), None)
        if metric is None:
            metrics = ", ".join(items[0].get("metrics", ())) if items else "no item"
            raise ValueError(f"task {task}: expected a metric {' or '.join(METRICS)} per item, found {metrics}")
        seen: dict[str, int] = {}
        for item in items:
            if item[metric] not in (0, 1):
                raise ValueError(f"task {task}: {metric} of an item: expected 0 or 1, found {item[metric]!r}")
            content = f"{item['doc_hash']}-{item['prompt_hash']}"
            seen[content] = seen.get(content, 0) + 1
            name = f"{content}-{seen[content]}"
            rows.append({"task": task, "item": name, "metric": metric, "correct": bool(item[metric])})
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["task"], row["item"])), SCHEMA)


def compare(first: pa.Table, second: pa.Table) -> list[dict[str, Any]]:
    """Per task, McNemar's exact test on the paired items of two models, with Holm's correction over the tasks.

    Args:
        first, second: two `item_table`s of the same tasks and items.

    Returns:
        task, items, accuracy_first, accuracy_second, only_first, only_second (items that only the one answers
        correctly), flips (share of 1), p_value, p_adjusted.

    Raises:
        ValueError: the two have different items.
    """
    keys = ["task", "item", "metric"]
    if not first.select(keys).equals(second.select(keys)):
        raise ValueError("the two models answered different items; run both on the same tasks with the same settings")
    tasks = first["task"].to_pylist()
    pairs = list(zip(first["correct"].to_pylist(), second["correct"].to_pylist(), strict=True))
    rows = [
        _row(task, [pair for name, pair in zip(tasks, pairs, strict=True) if name == task])
        for task in dict.fromkeys(tasks)
    ]
    adjusted = holm([row["p_value"] for row in rows])
    return [{**row, "p_adjusted": p} for row, p in zip(rows, adjusted, strict=True)]


def _row(task: str, pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return {
        "task": task,
        "items": len(pairs),
        "accuracy_first": sum(a for a, _ in pairs) / len(pairs),
        "accuracy_second": sum(b for _, b in pairs) / len(pairs),
        "only_first": only_first,
        "only_second": only_second,
        "flips": (only_first + only_second) / len(pairs),
        "p_value": mcnemar(only_first, only_second),
    }
