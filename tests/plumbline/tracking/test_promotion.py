"""The champion's history in MLflow: who, when, why; back again; and over a crash at the worst moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import Tracking, TrackingError
from plumbline.tracking.promotion import Promotion, Registry
from tests.helpers.tracking import client, evaluation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def registry(store: Path, request: pytest.FixtureRequest) -> Registry:
    name = request.node.name
    return Registry(Tracking(f"sqlite:///{store / 'mlflow.db'}", experiment=name, registered_model=name), store)


@pytest.fixture
def register(registry: Registry) -> Callable[[str], str]:
    def make(pair: str) -> str:
        record = evaluation(pair=pair, model_md5=f"model-{pair}", dvc_md5=f"evaluation-{pair}")
        record |= {"calibration_md5": f"set-{pair}", "rests_on": {"data/raw_corpus": "corpus"}}
        return registry.tracking.record_evaluation(**record)[1]

    return make


def moves(registry: Registry) -> list[tuple[str, str | None, str]]:
    return [(p.version, p.from_version, p.kind) for p in registry.history()]


def test_who_why_and_back_again(registry: Registry, register: Callable[[str], str]) -> None:
    assert registry.champion() is None and registry.history() == []
    with pytest.raises(ValueError, match="no champion"):
        registry.rollback("Ada", "because")
    one, two, three = (register(pair) for pair in ("one", "two", "three"))
    assert registry.promote(one, "Ada", "the first") == registry.history()[0]
    with pytest.raises(ValueError, match="first champion"):
        registry.rollback("Ada", "because")
    registry.promote(two, "Bob", "lower\n KL")
    assert registry.promote(two, "Bob", "again") is None
    assert registry.version(two).rests_on == {"corpus", "evaluation-two", "model-two", "set-two"}
    registry.promote(three, "plumbline", "lower still")
    champion = registry.champion()
    assert champion is not None and (champion.version, champion.pair, champion.model) == (three, "three", "model-three")
    assert registry.rollback("Ada", "it swears").version == two and registry.withdrawn() == {
        "model-three": "Ada: it swears"
    }
    assert registry.rollback("Ada", "this one, too").version == one
    assert set(registry.withdrawn()) == {"model-two", "model-three"}
    registry.promote(three, "Ada", "it was the prompt")
    assert set(registry.withdrawn()) == {"model-two"}
    expected = [(one, None), (two, one), (three, two), (two, three), (one, two), (three, one)]
    assert [move[:2] for move in moves(registry)] == expected
    assert [move[2] for move in moves(registry)] == ["promoted"] * 3 + ["rolled back"] * 2 + ["promoted"]

    tags = client(registry.tracking).get_registered_model(registry.name).tags
    assert set(json.loads(tags["plumbline.promotion.2"])) == {"when", "version", "from_version", "who", "why", "kind"}
    assert json.loads(tags["plumbline.promotion.2"])["why"] == "lower KL"
    version = client(registry.tracking).get_model_version(registry.name, three)
    assert (version.tags["plumbline.promoted_by"], version.tags["plumbline.reason"]) == ("Ada", "it was the prompt")
    assert not any(name.startswith("plumbline.") for name in registry.tracking.trace(version=three)["digests"])


def test_what_is_not_there_or_not_said_moves_nothing(registry: Registry, register: Callable[[str], str]) -> None:
    one = register("one")
    with pytest.raises(ValueError, match="say why"):
        registry.promote(one, "Ada", "  ")
    with pytest.raises(TrackingError, match="/99.*no such version"):
        registry.promote("99", "Ada", "because")
    with pytest.raises(TrackingError, match="evaluate the model first"):
        registry.of_model("never made")
    assert registry.champion() is None and registry.history() == []
    assert registry.of_model("model-one").version == one


def test_a_process_killed_between_the_list_and_the_alias_is_finished_by_the_next(
    registry: Registry, register: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    one = register("one")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(one, "Ada", "the first")
    assert registry.champion() is None and len(registry.history()) == 1
    done = registry.promote(one, "Bob", "once more")
    assert isinstance(done, Promotion) and done.who == "Ada" and registry.history() == [done]
    assert registry.champion() is not None
