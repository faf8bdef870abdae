"""The champion's history in MLflow: who, when, why; back again; and over a crash at the worst moment."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    assert set(json.loads(tags["plumbline.promotion.2"])) == {"when", "version", "from_version", "who", "why", "kind"}
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


def test_a_process_killed_between_the_list_and_the_alias_is_finished_by_the_next(
    registry: Registry, register: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    from mlflow import MlflowClient

    one = register("one")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(registry, store, one, "Ada", "the first")
    assert registry.champion() is None and len(history(registry).entries) == 1
    done = promote(registry, store, one, "Bob", "once more")
    assert isinstance(done, Promotion) and done.who == "Ada" and history(registry).entries == (done,)
    assert registry.champion() is not None


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
