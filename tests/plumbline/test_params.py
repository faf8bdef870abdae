"""params.yaml is checked before anything runs, and a mistake is named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.params import load_params, pair_key
from plumbline.requested import request, requested
from plumbline.yaml_file import read_yaml
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
        ({"tokenize": {"maxlength": 5}}, r"line \d+, tokenize\.maxlength: unknown key; did you mean `max_length`"),
        ({"calibrations": {"a.b": {"strategy": "random", "n": 1}}}, r"'a\.b' becomes a folder"),
        (
            {"grid": {"calibrations": ["nobody"], "schemes": ["w4a16-rtn"]}},
            r"grid\.calibrations: \['nobody'\] not under",
        ),
        ({"deployment": {"scheme": "w1a1"}}, r"deployment\.scheme: 'w1a1' is not in grid\.schemes"),
        ({"statistics": {"hessian": False}}, r"schemes\.w4a16-gptq: reads second moments.*statistics: \{hessian: true"),
        ({"execution": {"workers": 0}}, r"execution\.workers: Input should be greater than or equal to 1"),
        ({"execution": {"address": "auto"}}, r"execution: .*executor is 'local'; write `executor: ray`"),
        ({"tokenize": {"workers": -1}}, r"line \d+, tokenize\.workers: found -1, expected 0 to 4096"),
        ({"report": {"resamples": 2**40}}, r"report\.resamples: found \d+, expected 1 to 10000000"),
        ({"corpus": {"max_file_bytes": 2**70, "sources": {}}}, r"corpus\.max_file_bytes: found \d+, expected"),
        ({"calibrations": {"a": {"strategy": "random", "n": True}}}, r"calibrations\.a\.n: found true, expected a num"),
        ({"calibrations": {"a": {"strategy": "random", "n": "5"}}}, r"a\.n: found the text '5'.*leave the quotes out"),
        (
            {"studies": {"s": {**GOOD["studies"]["sizes"], "sizes": [64, True], "random_sets": -1}}},
            r"studies\.s\.random_sets: found -1, expected 0 to(.|\n)*studies\.s\.sizes\.1: found true",
        ),
        ({"execution": {"hidden_gib": float("inf")}}, r"execution\.hidden_gib: found inf, expected 0 to 1048576"),
        ({"execution": {"mode": "fast"}}, r"execution\.mode.*'auto', 'whole' or 'layerwise'"),
        ({"report": {"baseline": "nobody"}}, r"report\.baseline: 'nobody'"),
        (
            {"tokenize": {"splits": {"tuning": 0.6, "report": 0.6}}},
            r"tokenize\.splits: .*sum to 1\.2, expected less than 1",
        ),
        ({"tokenize": {"splits": {"tuning": 0.5, "report": 0.5}}}, r"tokenize\.splits: .*sum to 1,"),
        ({"tokenize": {"splits": {"tuning": 0, "report": 0}}}, r"report is 0.*\n.*tuning is 0"),
        ({"calibrations": {"a": {"strategy": "random", "n": 1, "seed": 2**70}}}, r"calibrations\.a\.seed: found 11805"),
        ({"report": {"seed": -1}}, r"report\.seed: found -1, expected 0 to"),
        ({"grid": {"calibrations": [], "schemes": ["w4a16-rtn"]}}, r"grid\.calibrations: found none"),
        ({"deployment": {"scheme": 128}}, r"deployment\.scheme: expected text, found 128; put it in quotes"),
        (
            {"schemes": {"x": {"method": "rtn", "group": 3}}},
            r"schemes\.x\.group: unknown key; did you mean `group_size`",
        ),
        ({"corpus": {"sources": {"x": {"kind": "directory"}}}}, r"corpus\.sources\.x.*path: Field required; add it"),
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


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "${model.name}", ".", "..", "", "a b", "a" * 300, "x\n"])
@pytest.mark.parametrize("section", ["calibrations", "schemes", "studies", "sources", "rules"])
def test_a_name_that_becomes_a_path_is_one_part_of_it(tmp_path: Path, section: str, name: str) -> None:
    study = {**GOOD["studies"]["strategies"], "schemes": ["w4a16-gptq"]}
    sections = {
        "calibrations": {"calibrations": {**GOOD["calibrations"], name: {"strategy": "random", "n": 1}}},
        "schemes": {"schemes": {**GOOD["schemes"], name: {"method": "rtn"}}},
        "studies": {"studies": {name: study}},
        "sources": {"corpus": {"sources": {name: {"kind": "python_stdlib"}}}},
        "rules": {"studies": {"s": {**study, "rules": {**study["rules"], name: {"strategy": "random"}}}}},
    }
    with pytest.raises(ValueError, match="becomes"):
        load_params(write(tmp_path, **sections[section]))


def test_all_mistakes_are_said_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = (PROJECT / "params.yaml").read_text()
    text = text.replace("scheme: w4a16-gptq}", "scheme: w1}").replace("report: 0.1", "report: 0.95")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        load_params(tmp_path)
    lines = text.splitlines()
    for key, line in (("deployment.scheme", "deployment:"), ("tokenize.splits", "  splits:")):
        number = next(i for i, content in enumerate(lines, 1) if content.startswith(line))
        assert f"\n  line {number}, {key}: " in str(error.value)
    assert len(str(error.value)) < 600  # the file itself is not in the message


def test_a_name_means_the_same_to_both_doors(tmp_path: Path) -> None:
    """Read as a number by one and as text by the other, a choice's stages were skipped without a word."""
    from dvc.utils.serialize import load_yaml

    for name in ("0128", "1e3", "true", "null", "2024-01-01", "0x10", "1_000"):
        choice = "{strategy: random, n: 1}"
        text = f"calibrations:\n  {name}: {choice}\ngrid: {{calibrations: [{name}], schemes: []}}\n"
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"line 2: the key {name} under `calibrations`.*in quotes: '{name}'"):
            load_params(tmp_path)
        (tmp_path / "params.yaml").write_text(text.replace(name, f"'{name}'"))
        assert read_yaml(tmp_path / "params.yaml").content == load_yaml(str(tmp_path / "params.yaml"))
        assert list(read_yaml(tmp_path / "params.yaml").content["calibrations"]) == [name]


def test_the_grid_of_numbers_says_to_quote_them(tmp_path: Path) -> None:
    sections = yaml.safe_dump({**GOOD, "grid": {"calibrations": [128], "schemes": ["w4a16-rtn"]}})
    (tmp_path / "params.yaml").write_text(sections)
    with pytest.raises(ValueError, match=r"grid\.calibrations\.0: expected text, found 128; put it in quotes"):
        load_params(tmp_path)


@pytest.mark.parametrize("text", ["requested: 5", "requested: [5]", "5", "- {a: 1}", "requested: [a\n"])
def test_requested_yaml_is_read_with_the_same_care(tmp_path: Path, text: str) -> None:
    (tmp_path / "requested.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"requested\.yaml"):
        requested(tmp_path)
