"""The history of promotions is a chain: what is changed, removed or added in it contradicts the rest, or the copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import sha256_json
from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import history, promote, read_history, rollback
from plumbline.tracking.promotion_chain import COPY, broken, contradictions, digest_before, read_copy, write_copy
from plumbline.tracking.registry import Registry
from tests.helpers.tracking import log_evaluation

Change = Callable[[dict[int, dict[str, Any]]], Any]


def chain(length: int) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for number in range(1, length + 1):
        before = sha256_json(entries[number - 1]) if number > 1 else ""
        entries[number] = {"version": str(number), "who": "Ada", "why": f"reason {number}", "previous": before}
    return entries


CHANGES: dict[str, tuple[Change, list[int], list[int]]] = {
    # name: (what is done, the entries that no longer follow, those that contradict the copy)
    "nothing": (lambda entries: None, [], []),
    "who of an old entry": (lambda entries: entries[1].update(who="Bob"), [2], [1]),
    "who of the newest": (lambda entries: entries[3].update(who="Bob"), [], [3]),
    "an entry removed": (lambda entries: entries.pop(2), [3], [2]),
    "the newest removed": (lambda entries: entries.pop(3), [], [3]),
    "all removed": (lambda entries: entries.clear(), [], [1, 2, 3]),
    "one put in between": (lambda entries: entries.update({0: {"version": "9", "previous": ""}}), [1], []),
    "two exchanged": (lambda entries: entries.update({1: entries[2], 2: entries[1]}), [1, 2, 3], [1, 2]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_in_the_chain_is_found_by_the_chain_or_by_its_copy(what: str) -> None:
    change, unlinked, other = CHANGES[what]
    entries = chain(3)
    copy = deepcopy(entries)
    change(entries)
    assert [int(remark.split()[1]) for remark in broken(entries)] == unlinked
    assert sorted({int(part) for text in contradictions(entries, copy) for part in numbers(text)}) == other


def numbers(text: str) -> list[str]:
    return [text.split("promotion ")[1].split(",")[0].split(":")[0]]


def test_a_copy_that_ends_earlier_is_no_contradiction_and_entries_of_older_versions_are_read() -> None:
    entries = chain(3)
    assert contradictions(entries, chain(2)) == []
    del entries[1]["previous"], entries[2]["previous"]
    entries[3]["previous"] = digest_before(entries, 3)
    assert broken(entries) == []


def test_promotions_are_linked_and_kept_in_the_workspace(tmp_path: Path) -> None:
    registry = Registry(Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}"))
    log_evaluation(registry.tracking, pair="one", model_md5="model-one", dvc_md5="evaluation-one")
    log_evaluation(registry.tracking, pair="two", model_md5="model-two", dvc_md5="evaluation-two")
    promote(registry, tmp_path, "1", "Ada", "the first")
    promote(registry, tmp_path, "2", "Bob", "better")
    rollback(registry, tmp_path, "Ada", "it swears")
    recorded = history(registry)
    assert recorded.remarks == () and [entry.model for entry in recorded.entries] == [
        "model-one",
        "model-two",
        "model-one",
    ]
    assert recorded.numbered[3]["previous"] == sha256_json(recorded.numbered[2])
    assert read_copy(tmp_path, registry.name) == recorded.numbered

    forged = {**recorded.numbered[1], "who": "Eve"}
    with registry.tracking.client() as client:
        client.set_registered_model_tag(registry.name, "plumbline.promotion.1", json.dumps(forged))
    assert history(registry).remarks == (
        "promotion 2 does not follow the one before it: an earlier entry was changed, added or removed",
    )
    (tmp_path / COPY).unlink()  # a clone that never had it
    promote(registry, tmp_path, "2", "Bob", "it was the prompt")
    assert set(read_copy(tmp_path, registry.name)) == {1, 2, 3, 4}


def test_the_copy_keeps_its_lines_and_those_of_other_models(tmp_path: Path) -> None:
    write_copy(tmp_path, "a", chain(2))
    write_copy(tmp_path, "b", chain(1))
    forged = {number: {**entry, "who": "Eve"} for number, entry in chain(3).items()}
    write_copy(tmp_path, "a", forged)
    assert read_copy(tmp_path, "a") == {**chain(2), 3: forged[3]}
    assert read_copy(tmp_path, "b") == chain(1) and read_copy(tmp_path, "c") == {}


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"registered_model": "a", "number": "x"}', "[" * 10000])
def test_a_damaged_copy_is_named_with_its_line(line: str, tmp_path: Path) -> None:
    write_copy(tmp_path, "a", chain(1))
    with (tmp_path / COPY).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"promotions\.jsonl line 2: not an entry .* restore the file with git"):
        read_copy(tmp_path, "a")


def test_remarks_of_the_chain_are_remarks_of_the_history() -> None:
    entries = chain(2)
    tags = {f"plumbline.promotion.{number}": json.dumps(entry) for number, entry in entries.items()}
    assert read_history([tags]).remarks == ()
    tags["plumbline.promotion.1"] = json.dumps({**entries[1], "why": "other"})
    [remark] = read_history([tags]).remarks
    assert remark.startswith("promotion 2 does not follow")
