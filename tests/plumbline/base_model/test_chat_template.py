"""`model: {chat_template: FILE}`: it decides the tokens of chats, is fingerprinted, exported, and watched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from plumbline.base_model.chat_template import read_template, require_template
from plumbline.base_model.load import load_tokenizer
from plumbline.base_model.params import ModelParams
from plumbline.deployed_model.promotion import tokenization
from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.reader import iter_samples
from plumbline.versioning.current_facts import current
from plumbline.versioning.facts import BASE_MODEL
from tests.helpers.checkpoint import checkpoint
from tests.helpers.paths import PROJECT
from tests.helpers.small_chain import build_model
from tests.helpers.small_model import write_base_model

OWN = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
SERVED = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def tokenize(root: Path, **model: str) -> tuple[list[str], str]:
    """The samples as text, and the fingerprint."""
    for name in ("raw_corpus", "tokenized_samples"):
        shutil.rmtree(root / "data" / name, ignore_errors=True)
        (root / "data" / name).mkdir(parents=True)
    corpus = {"sources": {"texts": {"kind": "directory", "path": "texts"}}}
    build_raw_corpus(CorpusParams.model_validate(corpus), root, root / "data/raw_corpus")
    base, samples = checkpoint("base", root, **model), root / "data/tokenized_samples"
    params = TokenizeParams(max_length=64, min_tokens=1, workers=1)
    build_tokenized_samples(params, base, root / "data/raw_corpus", samples)
    rows = [ids.as_py() for batch in iter_samples(samples, None, ["input_ids"]) for ids in batch["input_ids"]]
    fingerprint = json.loads((samples / "accounting.json").read_text())["fingerprint"]
    return [load_tokenizer(root / "base").decode(row) for row in rows], fingerprint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    chats = [[{"role": "user", "content": f"the model {i} reads"}] for i in range(30)]
    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (tmp_path / "texts/chats.jsonl").write_text(lines)
    (tmp_path / "served.jinja").write_text(SERVED)
    write_base_model(tmp_path / "base", OWN)
    return tmp_path


def test_the_named_template_decides_the_tokens_and_the_fingerprint(root: Path) -> None:
    own, before = tokenize(root)
    served, after = tokenize(root, chat_template="served.jinja")
    assert sorted(own)[0] == "user the model 0 reads" and sorted(served)[0] == "<s>the model 0 reads</s>"
    assert before != after
    (root / "base/chat_template.jinja").write_text(SERVED)  # the same by content, wherever it stands
    assert tokenize(root) == (served, after)


@pytest.mark.parametrize("own", ["file", "tokenizer_config.json", "none"])
def test_the_exported_model_serves_with_it(root: Path, own: str) -> None:
    if own != "file":
        (root / "base/chat_template.jinja").unlink()
    if own == "tokenizer_config.json":
        path = root / "base" / own
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": OWN}))
    _, fingerprint = tokenize(root, chat_template="served.jinja")
    build_model(root, "c", "s", strategy="first_n", n=4, method="rtn", chat_template="served.jinja")
    model = root / "data/quantized_model/c-s"
    assert load_tokenizer(model).chat_template == SERVED
    assert json.loads((model / "calibration.json").read_text())["fingerprint"] == fingerprint
    assert tokenization(model, fingerprint, None).passed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "served.jinja is no file"),
        (b"", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"{% for m in messages %}\n{{ m. }}", "line 2: not Jinja"),
        (b"{% if %}", "line 1: not Jinja"),
    ],
)
def test_what_is_no_template_is_refused_before_work(root: Path, content: bytes | None, said: str) -> None:
    (root / "served.jinja").unlink()
    if content is not None:
        (root / "served.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.chat_template in params.yaml: .*{said}"):
        require_template(ModelParams(name="base", chat_template="served.jinja"), root)


def test_tags_of_chat_templates_are_jinja(root: Path) -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    (root / "served.jinja").write_text(text)
    params = ModelParams(name="base", chat_template="served.jinja")
    require_template(params, root)
    assert read_template(params, root) == text and read_template(ModelParams(name="base"), root) is None


@pytest.mark.parametrize("model", [{"name": "base"}, {"name": "org/model", "revision": "0" * 40}])
def test_a_changed_template_makes_what_reads_tokens_stale(root: Path, model: dict[str, str]) -> None:
    def facts(**more: str) -> dict[str, str]:
        params = yaml.safe_load((PROJECT / "params.yaml").read_text()) | {"model": model | more}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        return current(root, BASE_MODEL)

    own, named = facts(), facts(chat_template="served.jinja")
    (root / "served.jinja").write_text(OWN)
    changed = facts(chat_template="served.jinja")
    assert own["weights"] == named["weights"] == changed["weights"]
    assert len({own["tokenizer"], named["tokenizer"], changed["tokenizer"]}) == 3
