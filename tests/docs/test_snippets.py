"""What README.md and docs/ show: commands are understood, settings are valid, and code runs or is marked as by hand."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest
import yaml

from plumbline.cli.main import main
from plumbline.params import Params
from plumbline.quantized_model.params import SchemeParams
from tests.helpers.paths import PROJECT
from tests.helpers.small_model import write_base_model
from tests.helpers.snippets import PAGES, Snippet, marked, snippets

SHELL = snippets("bash")
COMMANDS = sorted({command for block in SHELL for line in block.commands for command in re.split(r"&&|\|\|", line)})
OTHERS = ("cd", "cp", "source", "pip", "openssl", "vllm", "true", ".ci/run")
"""Commands that are not ours."""
TARGETS = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
TEMPLATE = yaml.safe_load((PROJECT / "params.yaml").read_text())


@pytest.mark.parametrize("block", [*SHELL, *snippets("python")], ids=str)
def test_every_snippet_is_run_or_marked_as_by_hand(block: Snippet) -> None:
    assert block.mark in ("run", "run after", "by hand") and block.why, f"{block}: say how it is tested"
    if block.mark == "run after":
        assert marked("run", block.why), f"{block}: nothing runs {block.why!r}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    """Options and arguments are those of the command; modules, scripts and targets of make are there."""
    words = shlex.split(command)
    if words[0] == "plumbline":
        understood(words[1:])
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
    elif words[:2] == ["python", "-m"]:
        spec = importlib.util.find_spec(words[2])
        assert spec is not None and spec.origin is not None
        source = "".join(path.read_text() for path in Path(spec.origin).parent.glob("*.py"))
        assert [word for word in words[3:] if word.startswith("--") and word not in source] == []
    else:
        assert words[0] in OTHERS or words == ["python", "prepare.py", "CORPORA"], command


def understood(words: list[str]) -> None:
    """Raise unless the command line has no unknown option, command, or missing argument; paths may be made up."""
    context = main.make_context("plumbline", list(words), resilient_parsing=words[0].startswith("-"))
    if words[0].startswith("-"):
        return
    name, command, rest = main.resolve_command(context, list(words))
    assert command is not None
    try:
        command.make_context(name, rest, parent=context)
    except click.BadParameter as error:
        if "does not exist" not in str(error) or isinstance(error, click.MissingParameter):
            raise


@pytest.mark.parametrize("block", snippets("yaml"), ids=str)
def test_every_setting_is_valid(block: Snippet) -> None:
    content = yaml.safe_load(block.text)
    if not set(content) & set(Params.model_fields):  # lines below `schemes:` or `studies:`
        content = {"studies" if all("rules" in entry for entry in content.values()) else "schemes": content}
    with_all = {"statistics": {"hessian": True, "cache": True, "shards": 8}}
    merged: dict[str, Any] = {**TEMPLATE, **with_all}
    for section, value in content.items():
        named = section in ("calibrations", "schemes", "studies") or (section == "corpus" and "sources" not in value)
        merged[section] = {**merged.get(section, {}), **value} if named or section == "statistics" else value
    studied = {name for study in merged["studies"].values() for name in study["schemes"]}
    merged["schemes"] = {**{name: {"method": "rtn"} for name in studied}, **merged["schemes"]}
    names = merged["grid"]["calibrations"]
    merged["grid"] = {**merged["grid"], "calibrations": [name for name in names if name in merged["calibrations"]]}
    Params.model_validate(merged)


def test_a_wrong_option_is_not_understood() -> None:
    for words in (["run", "--plans"], ["audits", "x"], ["export"], ["init", "a", "b"]):
        with pytest.raises(click.UsageError):
            understood(words)
    understood(["plan", "nowhere/model"])


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plumbline
    from plumbline.base_model.load import load_model

    write_base_model(tmp_path / "base-model")
    monkeypatch.chdir(tmp_path)
    random = Random(0)
    texts = [random.choices(range(2, 300), k=20) for _ in range(940)]
    (block,) = marked("run", "notebook")
    exec(
        compile(block.text, str(block), "exec"),
        {"plumbline": plumbline, "texts": texts, "model": load_model(tmp_path / "base-model")},
    )
    assert (tmp_path / "quantized-model/config.json").is_file()


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#([^)]+))?\)")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_of_the_site_lead_somewhere(name: str) -> None:
    targets = [target for target, _ in LINK.findall((PROJECT / name).read_text()) if "://" not in target]
    assert [target for target in targets if not (PROJECT / target).exists()] == []


def test_the_readme_is_short_and_explains_holm_before_it_says_it() -> None:
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 125 and max(map(len, text.splitlines())) <= 125
    assert text.index("make demo") < 800 and text.index("make test") < 900
    assert "Holm" not in text and "glossary" in text
    nav = (PROJECT / "mkdocs.yml").read_text()
    assert nav.index("glossary.md") < nav.index("tutorials/")  # the first page that says it comes later


def test_every_page_is_in_the_nav_and_every_page_of_the_nav_is_there() -> None:
    pytest.importorskip("pathspec")
    names = set(re.findall(r"[\w/-]+\.md", (PROJECT / "mkdocs.yml").read_text()))
    from docs.hooks import pages

    on_disk = {path.relative_to(PROJECT / "docs").as_posix() for path in PAGES if PROJECT / "docs" in path.parents}
    assert names == on_disk | set(pages())


def test_the_reference_names_every_field_command_and_table() -> None:
    from docs.hooks import pages

    site = pages()
    assert all(f"\n### {name}\n" in site["reference/command-line.md"] for name in main.commands)
    params = site["reference/params.md"]
    assert all(
        f"## `{name}:` " in params
        for name, info in Params.model_fields.items()
        if name not in ("calibrations", "schemes", "studies")
    )
    for field in SchemeParams.model_fields:
        assert f"| `{field}` |" in params
    assert "| `chat_template` | text or null; by default null. A file with a Jinja template" in params
    assert "| `input_ids` | list" in site["reference/artifacts.md"]
    assert "](docs/" not in site["contributing.md"] and "](CHANGELOG" not in site["contributing.md"]
