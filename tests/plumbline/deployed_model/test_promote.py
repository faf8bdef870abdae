"""The candidate is the choice with the lowest KL under the deployed scheme; it replaces the champion if it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.artifact import sha256_file
from plumbline.calibration_report.params import ReportParams
from plumbline.deployed_model.build import build_deployed_model
from plumbline.deployed_model.check_specs import GATES
from plumbline.deployed_model.params import DeploymentParams
from plumbline.deployed_model.promotion import Champion, choose_champion
from tests.helpers.promotion import DOCUMENTS, KL, SCHEME, Workshop

MODELS = {f"{choice}-w4": f"md5-{choice}" for choice in KL}


def decide(workshop: Workshop, champion: Champion | None = None, name: str = "out", **changes: Any) -> dict[str, Any]:
    out = workshop.root / name
    out.mkdir()
    previous, withdrawn = changes.pop("previous", None), changes.pop("withdrawn", {})
    asked, report = DeploymentParams(scheme="w4", **changes), ReportParams(resamples=400)
    build_deployed_model(asked, SCHEME, list(KL), report, workshop.inputs, out, champion, MODELS, withdrawn, previous)
    return dict(json.loads((out / "promotion.json").read_text()))


def champion_with(workshop: Workshop, kl: float, spread: float = 0.1) -> Champion:
    noise = np.random.default_rng(4).normal(1, spread, DOCUMENTS)
    return Champion("old-w4", "md5-old", workshop.evaluate("old-w4", kl * noise, workshop.root / "champion"))


def failed(record: dict[str, Any]) -> list[str]:
    return [check["name"] for check in record["checks"] if not check["passed"]]


def test_the_first_candidate_is_promoted_and_the_record_says_on_what_it_rests(workshop: Workshop) -> None:
    record = decide(workshop)
    assert (record["decision"], record["pair"], record["model"]) == ("promoted", "stratified-w4", "md5-stratified")
    assert [check["name"] for check in record["checks"]] == list(GATES) and failed(record) == []
    assert record["champion_before"] is None and "no champion" in record["why"]
    assert record["verdict"] == ["w4: yes"] and list(record["candidates"]) == sorted(KL)
    assert record["report_sha256"] == sha256_file(workshop.inputs.report / "report.html")
    assert decide(workshop, name="again") == record


def test_a_first_champion_that_the_verdict_calls_no_better_says_what_would_do_as_well(workshop: Workshop) -> None:
    compared = {"choice": "stratified", "scheme": "w4", "baseline": "random"}
    for verdict, said in {"no difference detected": True, "better": False}.items():
        content = {"sentences": [], "comparisons": [{**compared, "verdict": verdict}]}
        (workshop.inputs.report / "verdict.json").write_text(json.dumps(content))
        why = decide(workshop, name=verdict)["why"]
        assert ("(no difference from random was detected: that would do as well)" in why) is said


def test_a_better_candidate_replaces_the_champion_a_worse_or_unsure_one_does_not(workshop: Workshop) -> None:
    better = decide(workshop, champion_with(workshop, 0.025), "better")
    assert better["decision"] == "promoted" and better["champion_before"] == {"pair": "old-w4", "model": "md5-old"}
    worse = decide(workshop, champion_with(workshop, 0.015), "worse")
    assert (worse["decision"], failed(worse)) == ("rejected", ["no_worse_than_the_champion"])
    found = worse["checks"][0]["found"]
    assert found["verdict"] == "worse" and found["relative"]["low"] > 0.1
    assert f"{100 * found['relative']['difference']:+.2f} %" in worse["why"] and "old-w4 stays" in worse["why"]
    unsure = decide(workshop, champion_with(workshop, 0.0182, 0.5), "unsure")
    assert unsure["decision"] == "rejected" and unsure["checks"][0]["found"]["verdict"] == "no difference detected"
    lenient = decide(workshop, champion_with(workshop, 0.025, 0.5), "lenient", max_worse=1.0)
    assert lenient["decision"] == "promoted"


def test_a_champion_that_cannot_be_evaluated_blocks(workshop: Workshop) -> None:
    record = decide(workshop, Champion("old-w4", "md5-old", None, "The cache lacks it."))
    assert record["decision"] == "rejected" and "The cache lacks it." in record["why"]
    other = workshop.evaluate("o", np.full(DOCUMENTS, 0.03), workshop.root / "other", samples_digest="other documents")
    record = decide(workshop, Champion("old-w4", "md5-old", other), "other-documents")
    assert record["decision"] == "rejected" and "cannot be compared" in record["why"]
    few = workshop.evaluate("few-w4", np.array([0.1, 0.2, 0.3]), workshop.root / "few")
    workshop.evaluate("stratified-w4", np.array([0.001, 0.002, 0.003]))
    record = decide(workshop, Champion("old-w4", "md5-old", few), "few-documents")
    assert record["decision"] == "rejected" and "3 documents are too few" in record["why"]


def test_the_champion_itself_is_kept_and_the_decision_that_made_it_stands(workshop: Workshop) -> None:
    first = decide(workshop, champion_with(workshop, 0.025), "first")
    now = Champion("stratified-w4", "md5-stratified", workshop.inputs.evaluations / "stratified-w4")
    assert decide(workshop, now, "rerun", previous=workshop.root / "first") == first
    assert decide(workshop, now, "without")["decision"] == "kept"
    workshop.evaluate("random-w4", np.full(DOCUMENTS, 0.5))  # other inputs: a decision of its own
    assert decide(workshop, now, "changed", previous=workshop.root / "first")["decision"] == "kept"
    renamed = Champion("old-w4", "another folder", workshop.inputs.evaluations / "stratified-w4")
    assert decide(workshop, renamed, "same-weights")["decision"] == "kept"


def test_the_same_inputs_give_the_same_bytes(workshop: Workshop) -> None:
    decide(workshop, champion_with(workshop, 0.025), "one"), decide(workshop, champion_with(workshop, 0.025), "two")
    assert (workshop.root / "one/promotion.json").read_bytes() == (workshop.root / "two/promotion.json").read_bytes()


def test_among_equals_the_first_named_wins() -> None:
    assert choose_champion({"b": {"kl_mean": 1.0}, "a": {"kl_mean": 1.0}}) == "b"


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"grid\.calibrations"):
        choose_champion({})


def test_a_choice_that_was_not_evaluated_is_an_error(workshop: Workshop) -> None:
    (workshop.inputs.evaluations / "prose-w4/metrics.json").unlink()
    with pytest.raises(FileNotFoundError):
        decide(workshop)


def test_a_model_that_was_taken_back_by_hand_stays_back(workshop: Workshop) -> None:
    record = decide(workshop, withdrawn={"md5-stratified": "Ada: it swears"})
    assert (record["decision"], failed(record)) == ("rejected", ["not_withdrawn"])
    assert "Ada: it swears" in record["why"]
    assert decide(workshop, name="other", withdrawn={"md5-prose": "no"})["decision"] == "promoted"


def test_fallbacks_size_and_scheme(workshop: Workshop, tmp_path: Path) -> None:
    kl = np.full(DOCUMENTS, 0.001)
    workshop.evaluate("random-w4", kl, fallbacks={"layer.7": "no tokens"})
    record = decide(workshop, name="fallback")
    assert failed(record) == ["layers_quantized_as_asked"] and "layer.7: no tokens" in record["why"]
    assert decide(workshop, name="allowed", max_fallbacks=1)["decision"] == "promoted"

    workshop.evaluate("random-w4", kl, weights_bytes=12_000_001)
    assert failed(decide(workshop, name="as-large-as-the-base")) == ["size_and_scheme_as_asked"]
    workshop.evaluate("random-w4", kl)
    assert failed(decide(workshop, name="large", max_megabytes=4.9)) == ["size_and_scheme_as_asked"]
    assert failed(decide(workshop, name="fits", max_megabytes=5.0)) == []
    workshop.evaluate("random-w4", kl, scheme={"name": "w4", **SCHEME, "weight_bits": 3})
    record = decide(workshop, name="scheme")
    assert failed(record) == ["size_and_scheme_as_asked"] and "weight_bits" in record["why"]


def test_the_tokenizer_that_serves_must_be_the_one_that_calibrated(workshop: Workshop) -> None:
    folder = workshop.inputs.models / "stratified-w4"
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    record = decide(workshop, name="template")
    assert failed(record) == ["tokenized_as_it_is_served"] and "chat_template differ" in record["why"]

    serving = workshop.inputs.models / "random-w4"
    workshop.inputs = type(workshop.inputs)(**{**vars(workshop.inputs), "serving": serving})
    assert decide(workshop, name="served", serving="there")["decision"] == "promoted"
    workshop.inputs = type(workshop.inputs)(**{**vars(workshop.inputs), "serving": serving / "nowhere"})
    record = decide(workshop, name="nowhere", serving="there")
    assert failed(record) == ["tokenized_as_it_is_served"] and str(workshop.root) not in record["why"]


def test_a_report_text_in_the_calibration_set_blocks_exact_or_near(workshop: Workshop) -> None:
    pool, report = workshop.split("pool"), workshop.split("report")
    workshop.calibrate("stratified", [*pool[:3], report[0]])
    record = decide(workshop, name="exact")
    assert failed(record) == ["no_report_text_is_used"] and "1 exact" in record["why"]
    assert record["checks"][2]["found"]["exact"] == 1

    near = {**report[1], "sample_id": "0" * 64, "doc_id": "another"}
    near["input_ids"] = [*near["input_ids"][:-1], 3]  # one token of about sixty
    workshop.calibrate("stratified", [*pool[:3], near])
    record = decide(workshop, name="near")
    assert record["checks"][2]["found"] | {"documents": 0} == {"exact": 0, "near_duplicates": 1, "documents": 0}
    assert f"{report[1]['doc_id'][:12]} shares" in record["why"] and "sample 3" in record["why"]
    assert decide(workshop, name="allowed", max_near_duplicates=0.5)["decision"] == "promoted"
    assert decide(workshop, name="strict", near_duplicate=1.0)["decision"] == "promoted"
