"""Run lm-evaluation-harness on a model and log every item. Needs `pip install -c constraints.txt -e '.[lm-eval]'`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.distribution import install_command


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], include: Path | None, limit: int | None, batch_size: int
) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Run tasks; the logged samples per task, as `item_table` reads them.

    Args:
        model: a transformers model, quantized or not.
        tasks: names of the harness's tasks, or of the task files in `include`.
        include: folder with further task files (YAML).
        limit: number of items of each task; None: all.

    Raises:
        ImportError: the harness is not installed.
        ValueError: it does not know a task.
    """
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f"lm-evaluation-harness: {error}; {install_command('lm-eval')}") from error
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise ValueError(f"lm-evaluation-harness has no task {', '.join(unknown)}; give its file's folder (--include)")
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    results = simple_evaluate(
        wrapped, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples: Mapping[str, Iterable[Mapping[str, Any]]] = results["samples"]
    return samples
