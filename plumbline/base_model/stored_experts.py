"""Experts in a checkpoint of which some can be read without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from plumbline.base_model.expert_groups import NUMBER
from plumbline.base_model.experts import are_fused_experts
from plumbline.base_model.tensor_reader import UnreadTensor


@dataclass(frozen=True, eq=False)
class StoredExperts:
    """Where a checkpoint has the parameters of one module of fused experts."""

    together: Mapping[str, str]
    """Parameter -> name in the checkpoint, for those that one tensor holds for all experts."""
    one_by_one: Mapping[str, Mapping[int, Sequence[str]]]
    """Parameter -> expert -> names in the checkpoint, for the others."""

    def unread(
        self, parameters: Iterable[str], experts: range, unread: Callable[[list[str]], Mapping[str, UnreadTensor]]
    ) -> dict[str, UnreadTensor]:
        """What the checkpoint has of some experts, by its names.

        Args:
            unread: (names in the checkpoint) -> the tensors of these names.
        """
        together = [self.together[name] for name in parameters if name in self.together]
        apart = [self.one_by_one[name] for name in parameters if name in self.one_by_one]
        rows = {key: tensor.rows(experts) for key, tensor in unread(together).items()}
        return rows | dict(unread([key for keys in apart for expert in experts for key in keys[expert]]))


def stored_experts(
    model: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, StoredExperts]:
    """By name, the modules of fused experts whose experts can be read apart.

    Args:
        model: weights may be on the meta device.
        names: name in the checkpoint -> name in the model.
        shapes: by name in the checkpoint, of the tensors that may hold all experts.
    """
    keys: dict[str, list[str]] = {}
    for key, name in names.items():
        keys.setdefault(name, []).append(key)
    found = {}
    for name, module in model.named_modules():
        if not are_fused_experts(module):
            continue
        together: dict[str, str] = {}
        one_by_one: dict[str, dict[int, list[str]]] = {}
        for parameter, room in module.named_parameters(recurse=False):
            own = keys.get(f"{name}.{parameter}", [])
            if len(own) == 1 and tuple(shapes.get(own[0], ())) == tuple(room.shape):
                together[parameter] = own[0]
                continue
            numbered = one_by_one.setdefault(parameter, {})
            for key in own:
                if number := NUMBER.search(key):
                    numbered.setdefault(int(number[1]), []).append(key)
        if all(set(numbered) == set(range(len(module.down_proj))) for numbered in one_by_one.values()):
            found[name] = StoredExperts(together, one_by_one)
    return found
