"""A promotion that `dvc repro` did not record is found again by the next run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import write_json
from plumbline.graph import champion
from plumbline.versioning.recording import Step
from plumbline.versioning.scratch import acted_on, keep_acted_on

STAGE, CODE = "deployed_model", "0123456789ab"


class Killed(BaseException):
    """Somebody killed the process."""


def step(root: Path, decision: str) -> Step:
    out = root / "data" / STAGE
    out.mkdir(parents=True)
    write_json(out / "promotion.json", {"decision": decision, "model": "m", "why": "it is better"})
    (out / "promotion.json").chmod(0o444)
    return Step(STAGE, root, {}, CODE, {}, out, None)


@pytest.mark.parametrize("decision", ["promoted", "kept"])
def test_the_decision_is_kept_before_the_alias_moves(
    decision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Registry:
        def of_model(self, model: str) -> Any:
            return type("Version", (), {"version": "3"})

        def champion(self) -> None:
            return None

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(champion, "open_registry", lambda root: Registry())
    monkeypatch.setattr(champion, "promote", killed)
    kept = acted_on(tmp_path, STAGE, CODE) / "promotion.json"
    if decision == "promoted":
        with pytest.raises(Killed):
            champion.promote_candidate(step(tmp_path, decision))
        assert json.loads(kept.read_text())["why"] == "it is better"
    else:
        champion.promote_candidate(step(tmp_path, decision))
        assert not kept.exists()
    assert not list((tmp_path / "data/.tmp").glob("*"))


def test_a_decision_of_other_code_is_replaced(tmp_path: Path) -> None:
    out = step(tmp_path, "promoted").out
    keep_acted_on(tmp_path, STAGE, "other", out)
    keep_acted_on(tmp_path, STAGE, CODE, out)
    assert [path.name for path in (tmp_path / ".plumbline/acted" / STAGE).iterdir()] == [CODE]
