"""The statistics of a layer's experts, some experts at a time, from one pass of the samples through the layer.

A layer of a large mixture has a hundred experts and more, each with a Hessian and a histogram: many times its weights.
So what their module is called with is kept for every sample, on disk, and each group of experts reads it again. The
bits are those of one pass: an expert's sums have the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from plumbline.activation_stats.hidden import HiddenStates
from plumbline.activation_stats.memory import EXPERTS, site_bytes, width_of
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats
from plumbline.activation_stats.totals import Totals
from plumbline.base_model.experts import expert_renumbered, routed_inputs


class ExpertCalls:
    """What the modules of fused experts are called with; a context manager."""

    def __init__(self, modules: Mapping[str, nn.Module], scratch: Path, in_memory: int = 0) -> None:
        """
        Args:
            modules: by name, each one that `are_fused_experts` accepts.
            scratch: an existing folder.
            in_memory: bytes that need not go there.
        """
        self.modules, self._kept = modules, HiddenStates(in_memory, scratch)
        self._calls: dict[int, list[tuple[str, int]]] = {}
        """Row -> the modules that were called, and where the arguments are."""
        self._count = 0

    def __enter__(self) -> ExpertCalls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.__exit__(kind, error, trace)

    @contextmanager
    def noted(self, row: int) -> Iterator[None]:
        """Within the context, keep what the modules are called with for this sample."""

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._calls.setdefault(row, []).append((name, self._count))
                for value in [*args, *kwargs.values()][:2]:  # hidden states, chosen experts
                    self._kept[self._count] = value
                    self._count += 1

            return hook

        handles = [
            module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in self.modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def observed(self, totals: Totals, group: Sequence[str], at_least: int | None, first: int = 0) -> ActivationStats:
        """The statistics of some experts' matrices; the arguments are those of `add`."""
        return totals.result(self.add(totals, group, at_least, first), group)

    def add(
        self, totals: Totals, group: Sequence[str], at_least: int | None, first: int = 0
    ) -> dict[str, tuple[str, ...]]:
        """Add what the matrices of some experts are multiplied with; their weights must be in memory.

        Args:
            at_least: as for `routed_inputs`.
            first: the expert from which on the modules hold experts.

        Returns:
            The sites -> their one member each.
        """
        watched: dict[str, set[str]] = {}
        for name in group:
            held = expert_renumbered(name, -first)
            watched.setdefault(layer_name(name), set()).add(held.removeprefix(f"{layer_name(name)}."))
        members: dict[str, tuple[str, ...]] = {}
        for row, _ in enumerate(totals.samples()):
            for name, place in self._calls.get(row, ()):
                if name not in watched:
                    continue
                module = self.modules[name]
                hidden, chosen = (self._kept[place + i].to(_device(module)) for i in range(2))
                for part, x, positions in routed_inputs(module, hidden, chosen - first, watched[name], at_least):
                    site = expert_renumbered(f"{name}.{part}", first)
                    members[site] = (site,)
                    totals.add(site, x, positions)
        return members


def _device(module: nn.Module) -> torch.device:
    return next(x.device for x in module.parameters() if not x.is_meta)


def layer_name(matrix: str) -> str:
    """Name of the module of fused experts that holds a matrix, `<experts>.<number>.gate_up_proj`."""
    return matrix.rsplit(".", 2)[0]


def experts_at_a_time(module: nn.Module, settings: StatisticsParams) -> int:
    """The number of experts of a module, at least one, whose totals take at most `EXPERTS` bytes."""
    return max(1, EXPERTS // (2 * site_bytes(width_of(module), settings)))


def groups_of(experts: Mapping[str, nn.Module], settings: StatisticsParams) -> list[list[str]]:
    """Divide the matrices of experts into groups whose totals take at most `EXPERTS` bytes; experts stay whole.

    Args:
        experts: by name of a matrix, the module that holds it.
    """
    by_expert: dict[str, list[str]] = {}
    for name in experts:
        by_expert.setdefault(name.rpartition(".")[0], []).append(name)
    groups: list[list[str]] = []
    left = 0
    for names in by_expert.values():
        size = sum(site_bytes(width_of(experts[name]), settings) for name in names)
        if not groups or size > left:
            groups.append([])
            left = EXPERTS
        groups[-1] += names
        left -= size
    return groups
