from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from plumbline.tokenized_samples.fingerprint import tokenizer_fingerprint
from plumbline.tokenized_samples.params import SplitShares, TokenizeParams
from tests.helpers.paths import BUNDLED

PARAMS = TokenizeParams()


def fingerprint(folder: Path, params: TokenizeParams = PARAMS) -> str:
    return tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder), params)[0]


def test_it_survives_saving_and_does_not_depend_on_the_place(tokenizer_folder: Any, tmp_path: Path) -> None:
    folder = tokenizer_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "long text"], padding=False, truncation=True, max_length=3)  # leaves truncation switched on
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"] is not None
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(folder) == tokenizer_fingerprint(tokenizer, PARAMS)[0]


@pytest.mark.parametrize("where", ["bundled", "stories260K"])
def test_it_survives_saving_for_real_models(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if where == "bundled":
        folder = BUNDLED
        if not (folder / "tokenizer.json").is_file():
            pytest.skip("needs the bundled model")
    else:
        folder = request.getfixturevalue("shared_data") / "models" / "stories260K"
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "once")
    AutoTokenizer.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    assert fingerprint(folder) == fingerprint(tmp_path / "once") == fingerprint(tmp_path / "twice")


def test_whatever_changes_a_sample_changes_it(tokenizer_folder: Any, tmp_path: Path) -> None:
    base = tokenizer_folder()
    edited = tokenizer_folder(template="{{ messages }}")
    content = json.loads((edited / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (edited / "tokenizer.json").write_text(json.dumps(content))
    found = {
        "base": fingerprint(base),
        "template": fingerprint(tokenizer_folder(template="{{ messages }} ")),
        "no template": fingerprint(tokenizer_folder(template=None)),
        "post-processor": fingerprint(tokenizer_folder(eos=True)),
        "vocabulary": fingerprint(edited),
        "max_length": fingerprint(base, TokenizeParams(max_length=512)),
        "policy": fingerprint(base, TokenizeParams(long_documents="truncate")),
        "special": fingerprint(base, TokenizeParams(add_special_tokens=False)),
    }
    assert len(set(found.values())) == len(found)


def test_whatever_only_chooses_samples_does_not(tokenizer_folder: Any) -> None:
    folder = tokenizer_folder()
    other = TokenizeParams(workers=7, min_tokens=99, splits=SplitShares(tuning=0.3, report=0.3))
    assert fingerprint(folder) == fingerprint(folder, other)


def test_a_tokenizer_written_in_python(tmp_path: Path) -> None:
    from transformers import CanineTokenizer  # characters: it has no vocabulary file

    first = tokenizer_fingerprint(CanineTokenizer(), PARAMS)
    assert first == tokenizer_fingerprint(CanineTokenizer(), PARAMS)
    assert first[0] != tokenizer_fingerprint(CanineTokenizer(cls_token="x"), PARAMS)[0]
