"""What is called different, what is not, and in which words."""

from __future__ import annotations

import numpy as np
import pytest

from plumbline.artifact import read_json, write_json
from plumbline.calibration_report.params import ReportParams
from plumbline.calibration_report.study import Study, read_study
from plumbline.calibration_report.verdict import judge
from plumbline.calibration_report.wording import count, headline, join, nats, percent, sentences

PARAMS = ReportParams()


def by_pair(verdict: dict) -> dict:
    return {(c["choice"], c["scheme"]): c for c in verdict["comparisons"]}


def load(disk) -> Study:
    return read_study(disk.grid["calibrations"], disk.grid["schemes"], disk.evaluations)


def test_planted_differences_are_found_and_others_are_not(disk):
    verdict = judge(load(disk), PARAMS)
    found = by_pair(verdict)
    assert {pair: c["verdict"] for pair, c in found.items()} == {
        ("chosen", "w4a16-rtn"): "identical",
        ("off-domain", "w4a16-rtn"): "identical",
        ("chosen", "w4a16-gptq"): "no difference detected",
        ("off-domain", "w4a16-gptq"): "worse",
        ("chosen", "w3a16-gptq"): "no difference detected",
        ("off-domain", "w3a16-gptq"): "worse",
    }
    worse = found["off-domain", "w4a16-gptq"]
    assert worse["relative"]["low"] < 0.2 < worse["relative"]["high"]
    assert worse["difference"] == pytest.approx(worse["kl_mean"] - worse["kl_mean_baseline"])
    assert worse["relative"]["difference"] == pytest.approx(worse["kl_mean"] / worse["kl_mean_baseline"] - 1)
    assert worse["p_value"] <= worse["p_adjusted"] <= 0.05
    unseen = found["chosen", "w4a16-gptq"]
    assert abs(unseen["difference"]) < unseen["smallest_difference"] < worse["difference"]
    assert verdict["comparisons_tested"] == 4 and verdict["documents"] == 60
    assert verdict["headline"] == "The calibration choice matters under 2 of 3 schemes: w4a16-gptq and w3a16-gptq."
    assert "off-domain is worse than random" in verdict["sentences"][0]
    assert [(one["scheme"], one["use"], one["matters"]) for one in verdict["advice"]] == [
        ("w4a16-rtn", None, False), ("w4a16-gptq", "random", True), ("w3a16-gptq", "random", True),
    ]  # fmt: skip
    assert verdict["sentences"][-1].startswith("w4a16-rtn: random, chosen and off-domain give identical weights")


def test_the_other_way_round_is_better(disk):
    verdict = judge(load(disk), PARAMS.model_copy(update={"baseline": "off-domain"}))
    assert by_pair(verdict)["random", "w3a16-gptq"]["verdict"] == "better"
    assert any("random is better than off-domain" in s and "% lower" in s for s in verdict["sentences"])


def test_mean_and_interval_of_every_pair(disk):
    study = load(disk)
    estimates = judge(study, PARAMS)["estimates"]
    assert len(estimates) == 9
    for choice in study.calibrations:
        for scheme in study.schemes:
            one = estimates[f"{choice}-{scheme}"]
            mean = study.kl[choice, scheme].sum() / study.tokens.sum()
            assert one["low"] < mean < one["high"] and one["kl_mean"] == pytest.approx(mean)


def test_the_same_study_gives_the_same_verdict(disk, tmp_path):
    for name in ("one", "two"):
        write_json(tmp_path / name, judge(load(disk), PARAMS))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_holm_is_applied_over_the_whole_study():
    """A difference of 2.5 standard errors is called on its own, but not as the best of twenty."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((21, 40))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, ddof=1, keepdims=True)
    names = [f"c{k}" for k in range(21)]
    kl = {(name, "s"): 500 + row for name, row in zip(names, noise, strict=True)}
    kl["c1", "s"] = kl["c0", "s"] + noise[1] + 2.5 / np.sqrt(40)
    metrics = {pair: {"weights": {"model": pair[0]}} for pair in kl}
    many = by_pair(judge(Study(names, ["s"], metrics, np.full(40, 100), kl, ["d"] * 40), PARAMS))
    alone = by_pair(judge(Study(names[:2], ["s"], metrics, np.full(40, 100), kl, ["d"] * 40), PARAMS))
    assert alone["c1", "s"]["verdict"] == "worse" and alone["c1", "s"]["p_value"] < 0.05
    assert many["c1", "s"]["verdict"] == "no difference detected"
    assert many["c1", "s"]["p_adjusted"] == pytest.approx(20 * many["c1", "s"]["p_value"])
    assert many["c1", "s"]["smallest_difference"] > alone["c1", "s"]["smallest_difference"]


def test_too_few_documents_is_said(tmp_path):
    from tests.helpers.calibration_report import Disk

    verdict = judge(load(Disk(tmp_path, documents=6)), PARAMS)
    assert {c["verdict"] for c in verdict["comparisons"]} == {"identical", "too few documents"}
    assert verdict["headline"] == "Too few held-out documents to tell calibration choices apart."
    assert verdict["estimates"]["random-w4a16-gptq"]["low"] is None
    assert any("evaluation.tokens_per_domain" in s for s in verdict["sentences"])


def test_too_few_resamples_is_an_error(disk):
    with pytest.raises(ValueError, match="report.resamples: found 100.*at least 400"):
        judge(load(disk), PARAMS.model_copy(update={"resamples": 100, "confidence": 0.99}))


def test_an_unknown_baseline_is_an_error(disk):
    with pytest.raises(ValueError, match="'nobody' is not in grid.calibrations"):
        judge(load(disk), PARAMS.model_copy(update={"baseline": "nobody"}))


def test_one_choice_has_nothing_to_be_compared_with(disk):
    study = read_study(["random"], disk.grid["schemes"], disk.evaluations)
    verdict = judge(study, PARAMS)
    assert verdict["comparisons"] == [] and "nothing to compare" in verdict["headline"]


@pytest.mark.parametrize(
    ("key", "what"),
    [("base_model", "the base model"), ("fingerprint", "the tokenization"), ("samples_digest", "the documents")],
)
def test_only_like_is_compared_with_like(disk, key, what):
    path = disk.evaluations["chosen-w4a16-gptq"] / "metrics.json"
    write_json(path, read_json(path) | {key: "other"})
    with pytest.raises(ValueError, match=f"{what}.*random-w4a16-rtn.*chosen-w4a16-gptq.*other"):
        load(disk)


def test_a_missing_evaluation_is_named(disk):
    del disk.evaluations["chosen-w3a16-gptq"]
    with pytest.raises(ValueError, match="chosen-w3a16-gptq"):
        load(disk)


def test_words():
    assert [percent(x) for x in (0.0123, 0.05, 0.0994, 0.1, 1.234, 0.0, 0.00076, 0.00099, 4e-5)] == [
        "1.2 %",
        "5.0 %",
        "9.9 %",
        "10 %",
        "123 %",
        "0 %",
        "0.08 %",
        "0.10 %",
        "0 %",
    ]
    assert join(["a"]) == "a" and join(["a", "b"]) == "a and b" and join(["a", "b", "c"]) == "a, b and c"
    same = [{"scheme": "s", "choice": "b", "baseline": "a", "verdict": "identical"}]
    assert "changes nothing" in headline(same, ["s"], bool)
    assert sentences(same, 0.95) == [
        "s: a and b give identical weights, byte for byte (nothing in this scheme depended on the choice)."
    ]
    none = [{"scheme": "s", "verdict": "no difference detected"}]
    assert headline(none, ["s"], bool) == "No difference between the calibration choices was detected."
    every = [{"scheme": "s", "verdict": "worse"}, {"scheme": "t", "verdict": "better"}]
    assert headline(every, ["s", "t"], bool) == "The calibration choice matters under both schemes."
    small = "Calibration choices differ, but by too little to matter in practice."
    assert headline(every, ["s", "t"], lambda c: False) == small
    one = "The calibration choice matters under 1 of 2 schemes: t."
    assert headline(every, ["s", "t"], lambda c: c["scheme"] == "t") == one
    assert [nats(x) for x in (0.13, 0.132, 0.0006)] == ["0.130", "0.132", "0.000600"]
    assert count(29528) == "29\u202f528"
