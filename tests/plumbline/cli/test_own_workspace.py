"""`plumbline init --model --corpus`: a workspace for somebody's own model and texts that runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from plumbline.cli.main import main
from plumbline.cli.own_params import Own, count_documents, own_params, source_name, with_sections
from plumbline.graph.preflight import problems
from plumbline.params import load_params
from plumbline.versioning.pipeline import on_request, resolved
from tests.helpers.paths import PROJECT
from tests.helpers.small_model import CHAT_TEMPLATE, write_base_model

TEMPLATE = (PROJECT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 tokens' context without a chat template, and 60 chats in a folder."""
    place = tmp_path_factory.mktemp("own")
    write_base_model(place / "model")
    (place / "Our chats").mkdir()
    rows = [{"messages": [{"role": "user", "content": f"the model reads word {i}"}]} for i in range(60)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "Our chats/support.jsonl").write_text(text + text, encoding="utf-8")  # every chat twice
    (place / "served.jinja").write_text(CHAT_TEMPLATE)
    return place


def init(place: Path, root: Path, *more: str) -> Result:
    arguments = ["init", str(root), "--model", str(place / "model"), "--corpus", str(place / "Our chats"), *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_is_ready_and_fits_model_and_corpus(place: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    result = init(place, root, "--chat-template", str(place / "served.jinja"))
    assert result.exit_code == 0, result.output
    params = load_params(root)
    assert (params.model.name, params.model.chat_template) == (str(place / "model"), "chat_template.jinja")
    assert (root / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert params.corpus.sources["Our-chats"].path == str(place / "Our chats")  # type: ignore[union-attr]
    assert params.tokenize.max_length == 64 and params.tokenize.splits.report == 0.2
    assert {choice.n for choice in params.calibrations.values()} == {16}  # 60 documents, 42 in the pool
    assert list(params.grid.calibrations) == list(params.calibrations)
    later = on_request(root)
    assert list(problems(root, [name for name, s in resolved(root).items() if s.asset not in later])) == []
    assert str(place / "Our chats") in resolved(root)["raw_corpus"].deps
    text = (root / "params.yaml").read_text()
    assert "bundled" not in text and "stdlib" not in text and "# Who computes, and how" in text


def test_what_the_first_run_would_refuse_is_said_with_the_edit(place: Path, tmp_path: Path) -> None:
    result = init(place, tmp_path / "w")
    assert result.exit_code == 1 and "before `plumbline run`, mend this in" in result.output
    assert "support.jsonl holds chats" in result.output and "model: {chat_template: FILE}" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere/model/at/all", "--corpus", "{place}/Our chats"], "no such folder"),
        (["--model", "{place}/Our chats", "--corpus", "{place}/Our chats"], "no config.json"),
        (["--model", "{place}/model", "--corpus", "{place}/model"], "found 0 documents"),
        (["--model", "{place}/model", "--corpus", "{place}/gone"], "gone: no such folder or file"),
        (["--model", "{place}/model"], "--model and --corpus go together"),
        (["--chat-template", "{place}/served.jinja"], "name it and its --corpus"),
    ],
)
def test_what_cannot_run_writes_nothing(place: Path, tmp_path: Path, options: list[str], said: str) -> None:
    arguments = [option.format(place=place) for option in options]
    result = CliRunner().invoke(main, ["init", str(tmp_path / "w"), *arguments])
    assert result.exit_code == 1 and said in result.output, result.output
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("documents", "n", "report"),
    [(24, 8, 0.2), (45, 8, 0.2), (46, 16, 0.2), (365, 64, 0.2), (366, 128, 0.2), (1000, 128, 0.1), (2000, 128, 0.1)],
)
def test_a_set_is_at_most_half_of_the_pool(documents: int, n: int, report: float) -> None:
    content = of(documents=documents)
    assert list(content["calibrations"]) == [f"random-{n}", f"stratified-{n}", f"clusters-{n}"]
    assert content["tokenize"]["splits"] == {"tuning": 0.1, "report": report}
    assert 2 * n <= documents * (0.9 - report)
    assert list(content["studies"]) == ["strategies", "sizes"]  # those of the bundled corpus's domains are left out
    with pytest.raises(ValueError, match="found 23 documents .* at least 24"):
        of(documents=23)


def of(**changes: Any) -> dict[str, Any]:
    own = {"model": "m", "revision": None, "corpus": Path("/texts"), "documents": 500, "context": None}
    return yaml.safe_load(own_params(TEMPLATE, Own(**{**own, **changes})))


@pytest.mark.parametrize("path", ["/data/a b", "/data/é: {x}", "/data/no", '/data/"quoted"', "/data/# five"])
def test_any_path_is_read_back_as_it_is(path: str) -> None:
    content = of(model=path, corpus=Path(path), revision="0123456789" * 4)
    assert content["model"] == {"name": path, "revision": "0123456789" * 4}
    (source,) = content["corpus"]["sources"].values()
    assert source == {"kind": "directory", "path": path}


def test_sections_are_replaced_whole_and_the_others_stay() -> None:
    text = "# a\nmodel:\n  name: x\n\n# c\ncorpus: {}   # d\nlast: 1\n"
    assert with_sections(text, {"model": "model: y\n", "last": "last: 2\n"}) == (
        "# a\nmodel: y\n\n# c\ncorpus: {}   # d\nlast: 2\n"
    )


def test_names_of_sources_and_counts(tmp_path: Path) -> None:
    assert source_name(Path("/x/inbox")) == "texts" and source_name(Path("/x/a b!.c")) == "a-b-.c"
    (tmp_path / "broken.parquet").write_text("no")
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"text {i % 2}")
    assert count_documents(tmp_path) == 2 and count_documents(tmp_path / "0.txt") == 1
