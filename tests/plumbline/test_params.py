"""params.yaml is checked before anything runs, and a mistake is named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.params import load_params, pair_key, request, requested
from tests.helpers.paths import PROJECT

GOOD = yaml.safe_load((PROJECT / "params.yaml").read_text())


def write(root: Path, **sections: Any) -> Path:
    (root / "params.yaml").write_text(yaml.safe_dump({**GOOD, **sections}))
    return root


def test_pairs_are_named_as_dvc_names_the_stages_of_a_matrix(tmp_path: Path) -> None:
    pairs = load_params(write(tmp_path)).pairs()
    assert pairs == {pair_key(c, s): (c, s) for c in GOOD["grid"]["calibrations"] for s in GOOD["grid"]["schemes"]}
    assert next(iter(pairs)) == "random-64-w8a8-minmax"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"tokenize": {"max_length": "long"}}, r"tokenize\.max_length.*'long'"),
        ({"tokenize": {"maxlength": 5}}, r"tokenize\.maxlength: Extra inputs"),
        ({"calibrations": {"a.b": {"strategy": "random", "n": 1}}}, r"'a\.b' becomes a folder"),
        (
            {"grid": {"calibrations": ["nobody"], "schemes": ["w4a16-rtn"]}},
            r"grid\.calibrations: \['nobody'\] not under",
        ),
        ({"deployment": {"scheme": "w1a1"}}, r"deployment\.scheme: 'w1a1' is not in grid\.schemes"),
        ({"statistics": {"hessian": False}}, r"schemes\.w4a16-gptq reads second moments.*statistics: \{hessian: true"),
        ({"execution": {"workers": 2}}, r"execution\.workers: 2 processes, but statistics\.shards: 1 part.*at least 2"),
        ({"execution": {"mode": "fast"}}, r"execution\.mode.*'auto', 'whole' or 'layerwise'"),
        ({"report": {"baseline": "nobody"}}, r"report\.baseline: 'nobody'"),
        ({"corpus": {"sources": {"x": {"kind": "ftp"}}}}, r"corpus\.sources\.x"),
        ({"corpus": {"sources": {"x": {"kind": "huggingface", "name": "a/b"}}}}, r"revision: Field required"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        load_params(write(tmp_path, **sections))
    assert "params.yaml" in str(error.value)


def test_no_stage_depends_on_how_statistics_are_collected() -> None:
    """Else another machine, or another number of workers, would make what was collected stale."""
    assert load_params(PROJECT).execution.workers == 1
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    read = {
        name: stage.get("do", stage)["params"] for name, stage in stages.items() if "params" in stage.get("do", stage)
    }
    assert "statistics" in read["activation_stats"]
    sections = {entry for entries in read.values() for entry in entries if isinstance(entry, str)}
    assert not any(section.startswith("execution") for section in sections)


def test_two_pairs_of_one_name_are_refused(tmp_path: Path) -> None:
    choice, scheme = {"strategy": "random", "n": 1}, {"method": "rtn"}
    sections = {
        "calibrations": {"a": choice, "a-b": choice},
        "schemes": {"b-c": scheme, "c": scheme},
        "grid": {"calibrations": ["a", "a-b"], "schemes": ["b-c", "c"]},
        "deployment": {"scheme": "c"},
    }
    with pytest.raises(ValueError, match="share the name"):
        load_params(write(tmp_path, **sections))


@pytest.mark.parametrize("text", ["[1, 2", "just words", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match="params.yaml"):
        load_params(tmp_path)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PLUMBLINE_ROOT"):
        load_params(tmp_path)


def test_a_study_of_statistics_that_it_cannot_share_is_refused_before_it_becomes_a_stage(tmp_path: Path) -> None:
    root = write(tmp_path, statistics={"tokens": "assistant"})
    (name, *_) = GOOD["studies"]
    with pytest.raises(ValueError, match=r"statistics\.tokens: assistant: a study counts all tokens"):
        request([name], root)
    assert requested(root) == []
