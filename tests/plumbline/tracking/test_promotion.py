"""The champion's history in MLflow: who, when, why; back again; and over a crash at the worst moment."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import Promotion, history, promote, read_history, rollback, withdrawn
from plumbline.tracking.registry import Registry
from plumbline.tracking.store import TrackingError
from tests.helpers.tracking import log_evaluation, mlflow_client


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def registry(store: Path, request: pytest.FixtureRequest) -> Registry:
    name = request.node.name
    return Registry(Tracking(f"sqlite:///{store / 'mlflow.db'}", experiment=name, registered_model=name))


@pytest.fixture
def register(registry: Registry) -> Callable[[str], str]:
    def make(pair: str) -> str:
        hashes = {"model_md5": f"model-{pair}", "dvc_md5": f"evaluation-{pair}", "calibration_md5": f"set-{pair}"}
        record = log_evaluation(registry.tracking, pair=pair, rests_on={"data/raw_corpus": "corpus"}, **hashes)
        return record.version

    return make


def moves(registry: Registry) -> list[tuple[str, str | None, str]]:
    return [(p.version, p.from_version, p.kind) for p in history(registry).entries]


def test_who_why_and_back_again(registry: Registry, register: Callable[[str], str], store: Path) -> None:
    assert registry.champion() is None and history(registry).entries == ()
    with pytest.raises(ValueError, match="no champion"):
        rollback(registry, store, "Ada", "because")
    one, two, three = (register(pair) for pair in ("one", "two", "three"))
    assert promote(registry, store, one, "Ada", "the first") == history(registry).entries[0]
    with pytest.raises(ValueError, match="first champion"):
        rollback(registry, store, "Ada", "because")
    promote(registry, store, two, "Bob", "lower\n KL")
    assert promote(registry, store, two, "Bob", "again") is None
    assert registry.version(two).rests_on == {"corpus", "evaluation-two", "model-two", "set-two"}
    promote(registry, store, three, "plumbline", "lower still")
    champion = registry.champion()
    assert champion is not None and (champion.version, champion.pair, champion.model) == (three, "three", "model-three")
    assert rollback(registry, store, "Ada", "it swears").version == two and withdrawn(registry) == {
        "model-three": "Ada: it swears"
    }
    assert rollback(registry, store, "Ada", "this one, too").version == one
    assert set(withdrawn(registry)) == {"model-two", "model-three"}
    promote(registry, store, three, "Ada", "it was the prompt")
    assert set(withdrawn(registry)) == {"model-two"}
    expected = [(one, None), (two, one), (three, two), (two, three), (one, two), (three, one)]
    assert [move[:2] for move in moves(registry)] == expected
    assert [move[2] for move in moves(registry)] == ["promoted"] * 3 + ["rolled back"] * 2 + ["promoted"]

    tags = mlflow_client(registry.tracking).get_registered_model(registry.name).tags
    keys = {"when", "version", "from_version", "who", "why", "kind", "model", "previous"}
    assert set(json.loads(tags["plumbline.promotion.2"])) == keys
    assert json.loads(tags["plumbline.promotion.2"])["why"] == "lower KL"
    version = mlflow_client(registry.tracking).get_model_version(registry.name, three)
    assert (version.tags["plumbline.promoted_by"], version.tags["plumbline.reason"]) == ("Ada", "it was the prompt")


def test_what_is_not_there_or_not_said_moves_nothing(
    registry: Registry, register: Callable[[str], str], store: Path
) -> None:
    one = register("one")
    with pytest.raises(ValueError, match="say why"):
        promote(registry, store, one, "Ada", "  ")
    with pytest.raises(TrackingError, match="/99.*no such version"):
        promote(registry, store, "99", "Ada", "because")
    with pytest.raises(TrackingError, match="evaluate the model first"):
        registry.of_model("never made")
    assert registry.champion() is None and history(registry).entries == ()
    assert registry.of_model("model-one").version == one


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """kill(n): the process ends before its n-th write of the registry from now on."""
    from mlflow import MlflowClient

    @contextlib.contextmanager
    def killed_before(n: int) -> Iterator[None]:
        writes = itertools.count(1)
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            for name in WRITES:
                write = getattr(MlflowClient, name)

                def once(*arguments: Any, write: Any = write, **options: Any) -> Any:
                    if next(writes) == n:
                        raise Killed
                    return write(*arguments, **options)

                patched.setattr(MlflowClient, name, once)
            yield

    return killed_before


WRITES = (
    "set_registered_model_tag", "set_registered_model_alias", "set_model_version_tag", "delete_registered_model_tag",
)  # fmt: skip
STEPS = 6
"""Writes of a promotion: begun, alias, who, why, list, no longer begun."""


@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("then", ["the same", "another"])
def test_the_history_lists_what_happened_wherever_a_promotion_was_killed(
    step: int, then: str, registry: Registry, register: Callable[[str], str], kill: Any, store: Path
) -> None:
    one, two, three = (register(pair) for pair in ("one", "two", "three"))
    promote(registry, store, one, "Ada", "the first")
    with kill(step):
        promote(registry, store, two, "Ada", "killed")
    happened = step > 2  # the alias had moved
    champion = registry.champion()
    assert champion is not None and champion.version == (two if happened else one)
    moved = [(one, None, "promoted")] + [(two, one, "promoted")] * happened
    assert moves(registry) == moved
    if then == "the same":
        again = promote(registry, store, two, "Bob", "once more")
        assert (again is None) == happened
        expected = [(one, None, "promoted"), (two, one, "promoted")]
        assert history(registry).entries[-1].who == ("Bob" if step == 1 else "Ada")
    else:
        promote(registry, store, three, "Bob", "the next")
        expected = [*moved, (three, moved[-1][0], "promoted")]
    assert moves(registry) == expected and history(registry).remarks == () and history(registry).pending is None
    tags = mlflow_client(registry.tracking).get_registered_model(registry.name).tags
    assert sorted(set(tags) - {"plumbline.promoting"}) == [f"plumbline.promotion.{n + 1}" for n in range(len(expected))]
    reason = history(registry).entries[1].why if (two, one, "promoted") in expected else None
    assert registry.version(two).tags.get("plumbline.reason") == reason
    if len(expected) > 1:
        assert rollback(registry, store, "Ada", "back").version == expected[-1][1]


def test_an_interrupted_promotion_is_remarked_on(
    registry: Registry, register: Callable[[str], str], kill: Any, store: Path
) -> None:
    one, two = register("one"), register("two")
    promote(registry, store, one, "Ada", "the first")
    with kill(2):
        promote(registry, store, two, "Ada", "killed")
    recorded = history(registry)
    assert recorded.remarks == (f"a promotion of version {two} was interrupted and did not happen",)
    assert withdrawn(registry) == {}


@pytest.mark.parametrize("gone", [(3,), (2, 3), (2,), (1, 2, 3), (1, 2)])
def test_back_from_or_to_a_champion_that_was_deleted(
    gone: tuple[int, ...], registry: Registry, register: Callable[[str], str], store: Path
) -> None:
    versions = [register(pair) for pair in ("one", "two", "three")]
    for version in versions:
        promote(registry, store, version, "Ada", "better")
    for number in gone:
        mlflow_client(registry.tracking).delete_model_version(registry.name, versions[number - 1])
    left = [version for number, version in enumerate(versions[:2], 1) if number not in gone]
    if left:
        assert rollback(registry, store, "Ada", "back").version == left[-1]
        champion = registry.champion()
        assert champion is not None and champion.version == left[-1]
    else:
        with pytest.raises(ValueError, match=r"none came before it; the earlier ones were deleted: 1, 2"):
            rollback(registry, store, "Ada", "back")


def test_a_chain_that_cannot_be_read_is_named(registry: Registry, register: Callable[[str], str]) -> None:
    one = register("one")
    for broken in ("{", "[1]", "3", ""):
        mlflow_client(registry.tracking).set_model_version_tag(registry.name, one, "plumbline.rests_on", broken)
        with pytest.raises(ValueError, match=rf"/{one}: its tag plumbline\.rests_on should map paths to DVC hashes"):
            _ = registry.version(one).rests_on


def test_an_entry_that_cannot_be_read_or_was_removed_is_not_overwritten(
    registry: Registry, register: Callable[[str], str], store: Path
) -> None:
    one, two = register("one"), register("two")
    promote(registry, store, one, "Ada", "the first")
    client = mlflow_client(registry.tracking)
    client.set_registered_model_tag(registry.name, "plumbline.promotion.4", "{")
    promote(registry, store, two, "Ada", "the second")
    assert set(client.get_registered_model(registry.name).tags) >= {f"plumbline.promotion.{n}" for n in (1, 4, 5)}
    recorded = history(registry)
    assert [entry.version for entry in recorded.entries] == [one, two] and recorded.last == 5
    assert [remark[:26] for remark in recorded.remarks] == ["plumbline.promotion.4 is n", "a promotion was removed: t"]


def test_entries_of_other_versions_are_read() -> None:
    entry = {"when": 1772452800000, "version": 2, "who": "bob"}
    tags = {"plumbline.promotion.1": json.dumps(entry), "plumbline.promotion.x": "{}", "other": "1"}
    expected = Promotion("2026-03-02T12:00:00+00:00", "2", None, "bob", "", "promoted")
    assert read_history([tags]).entries == (expected,)
    [remark] = read_history([tags, {"plumbline.promotion.1": '{"version": "3"}'}]).remarks
    assert remark == "plumbline.promotion.1 has two different values"
