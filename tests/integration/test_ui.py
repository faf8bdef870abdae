"""Dagster's UI in a real browser: look at the graph, materialize one partition by clicking, see what came of it."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from plumbline.artifact import read_json
from tests.helpers.browser import chromium, expect, open_page
from tests.helpers.paths import BIN
from tests.helpers.processes import PATIENCE, running, until
from tests.helpers.workspace import Workspace, stale

pytestmark = pytest.mark.integration
MANIFEST, PROMOTION = "data/raw_corpus/manifest.json", "data/deployed_model/promotion.json"
GROUPS = ["1_corpus", "2_calibration", "3_model", "4_verdict", "5_live"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def server(finished: Workspace, tmp_path: Path) -> Iterator[tuple[Workspace, str]]:
    """What `plumbline ui` starts, on a copy of a finished workspace, whose own code it loads."""
    workspace, log, port = finished.copy(tmp_path / "ui"), tmp_path / "dagster.log", free_port()
    url = f"http://127.0.0.1:{port}"
    settings = workspace.root / ".dagster/dagster.yaml"
    if "nux:" not in settings.read_text():  # an invitation to a newsletter, which would lie over everything
        settings.write_text(settings.read_text() + "nux: {enabled: false}\n")
    with running([str(BIN / "plumbline"), "ui", "--port", str(port)], workspace, log) as process:
        until(process, lambda: answers(url), log)
        yield workspace, url


@pytest.fixture
def page(server: tuple[Workspace, str]) -> Iterator[Any]:
    with chromium() as browser:
        yield open_page(browser, viewport={"width": 1440, "height": 1000}, base_url=server[1])


def materialize(page: Any, asset: str, partition: str, config: str | None = None) -> str:
    """Click through the dialog that launches one partition, wait for its end; returns the run's id."""
    page.goto(f"/assets/{asset}?view=partitions&partition={partition}")
    page.get_by_text("Latest materialization").wait_for()
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog").filter(has_text="Launch runs to materialize")
    if config is not None:
        dialog.get_by_text("Config", exact=True).click()
        dialog.get_by_role("button", name="Add config").click()
        editor = page.get_by_role("dialog").filter(has=page.locator(".CodeMirror"))
        editor.locator(".CodeMirror").click()
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(config)
        editor.get_by_role("button", name="Save config").click()
    dialog.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text(re.compile("^Launched run")).wait_for()
    page.get_by_role("button", name="View", exact=True).or_(page.get_by_role("link", name="View", exact=True)).click()
    page.wait_for_url("**/runs/*")
    run = re.search(r"/runs/([0-9a-f-]{36})", page.url)
    assert run is not None, page.url
    page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first.wait_for()
    return run[1]


def metadata_of(page: Any, asset: str, partition: str, run: str) -> dict[str, str]:
    """What the page of a partition shows, once it shows this run."""
    page.goto(f"/assets/{asset}?view=partitions&partition={partition}")
    page.get_by_role("link", name=run[:8]).first.wait_for()
    page.get_by_text("dvc_md5", exact=True).first.wait_for()
    cells = [row.get_by_role("cell").all_inner_texts() for row in page.get_by_role("row").all()]
    return {row[0].strip(): row[1].strip() for row in cells if len(row) > 1}


def asked(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_other_site_reads_the_ui_or_acts_through_it(server: tuple[Workspace, str]) -> None:
    url = server[1]
    mutation = "mutation { setNuxSeen }"
    by_get = f"{url}/graphql?{urllib.parse.urlencode({'query': mutation})}"
    body = json.dumps({"query": mutation}).encode()
    json_type = {"Content_Type": "application/json"}
    assert asked(f"{url}/server_info", Host="evil.example")[0] == 400
    report = f"{url}/pages/calibration_report/report.html"
    assert asked(report, Host="evil.example")[0] == 400
    assert asked(report) == (200, (server[0].root / "data/calibration_report/report.html").read_text())
    assert asked(f"{url}/graphql", "POST", body, Host="evil.example", **json_type)[0] == 400
    assert asked(by_get)[0] == 403
    assert asked(by_get, "POST", b"", Origin="http://evil.example")[0] == 403
    assert asked(f"{url}/graphql", "POST", body, Origin="null", **json_type)[0] == 403
    assert not (server[0].root / ".dagster/.nux").exists()
    status, answer = asked(f"{url}/graphql", "POST", body, Origin=url, **json_type)
    assert status == 200 and "errors" not in json.loads(answer), answer
    assert asked(f"{url}/graphql?query=%7Bversion%7D")[0] == 200


def test_the_graph_is_there_in_the_order_of_flow(page: Any, tmp_path: Path) -> None:
    page.goto("/asset-groups")
    collapsed = page.locator("foreignObject.group")
    expect(collapsed).to_have_count(len(GROUPS))
    lefts = [collapsed.filter(has_text=group).bounding_box()["x"] for group in GROUPS]
    assert lefts == sorted(lefts)
    page.keyboard.press("Alt+KeyE")  # expands all groups
    for asset in ("inbox", "raw_corpus", "calibration_choice", "quantized_model", "deployed_model"):
        page.locator("foreignObject").get_by_text(asset, exact=True).first.wait_for()
    page.screenshot(path=str(tmp_path / "graph.png"))


def test_materialize_one_partition_by_clicking(server: tuple[Workspace, str], page: Any, tmp_path: Path) -> None:
    workspace, _ = server
    before = workspace.lock()
    run = materialize(page, "calibration_set", "random-8")

    shown = metadata_of(page, "calibration_set", "random-8", run)
    page.screenshot(path=str(tmp_path / "partition.png"))
    assert shown["dvc_md5"] == before["data/calibration_set/random-8"]
    assert shown["dvc_stage"] == "calibration_set@random-8"
    assert shown["selected"] == "8"
    page.goto("/assets/calibration_set?view=checks&checkDetail=no_report_document_is_used")
    page.get_by_text("This is a blocking asset check").wait_for()
    page.get_by_text("Passed", exact=True).wait_for()

    with dg.DagsterInstance.from_config(str(workspace.root / ".dagster")) as history:
        [finished] = history.get_runs(dg.RunsFilter(run_ids=[run]))
        events = history.all_logs(run, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    assert finished.status == dg.DagsterRunStatus.SUCCESS
    checks = [event.get_dagster_event().asset_check_evaluation_data for event in events]
    assert len(checks) == 3
    assert all(check.passed for check in checks if check.blocking)
    assert workspace.lock() == before
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert stale(workspace) == {}


def test_an_override_typed_into_the_ui_is_recorded(server: tuple[Workspace, str], page: Any) -> None:
    workspace, _ = server
    config = yaml.safe_dump({"ops": {"calibration_choice": {"config": {"n": 5}}}})
    run = materialize(page, "calibration_choice", "random-8", config)
    shown = metadata_of(page, "calibration_choice", "random-8", run)
    assert json.loads(shown["overridden"]) == ["n"]
    assert json.loads(shown["params"])["calibrations.random-8"]["n"] == 5
    choice = json.loads((workspace.root / "data/calibration_choice/random-8/choice.json").read_text())
    assert choice["n"] == 5
    assert "params.yaml" in workspace.dvc("status", "calibration_choice@random-8").stdout


def test_a_file_dropped_into_the_inbox_is_a_run_that_one_can_watch(
    server: tuple[Workspace, str], page: Any, tmp_path: Path
) -> None:
    workspace, _ = server
    before = read_json(workspace.root / MANIFEST)["totals"]["documents"]
    page.goto("/runs")
    page.get_by_text("Launched by", exact=True).wait_for()
    (workspace.root / "inbox/letters.txt").write_text("Dear Sir, the plumb line hangs straight again. " * 200)
    row = page.locator("[class*=RunsFeedRow_rowGrid]")  # the table has no roles
    run = row.filter(has_text="inbox_sensor").filter(has_text="plumbline/trigger: inbox")
    run.get_by_text("Success", exact=True).wait_for()
    page.screenshot(path=str(tmp_path / "inbox.png"))
    assert read_json(workspace.root / MANIFEST)["totals"]["documents"] == before + 1


def test_a_failing_check_keeps_the_champion_and_says_by_how_much(
    server: tuple[Workspace, str], page: Any, tmp_path: Path
) -> None:
    workspace, _ = server
    champion = read_json(workspace.root / PROMOTION)["pair"]
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    three_bits = {"method": "rtn", "weight_bits": 3, "group_size": 128}
    workspace.set_params(schemes={**params["schemes"], "w4a16-gptq": three_bits})
    workspace.plumbline("run", *(f"--only={a}" for a in ("quantized_model", "evaluation", "calibration_report")))

    # `deployed_model` follows by itself
    page.goto("/assets/deployed_model?view=checks&checkDetail=no_worse_than_the_champion")
    page.get_by_text("Failed", exact=True).first.wait_for()
    sentence = page.get_by_text(re.compile(r"^Mean KL \+[\d.]+ % against the champion's"))
    sentence.wait_for()
    page.screenshot(path=str(tmp_path / "check.png"))
    record = read_json(workspace.root / PROMOTION)
    assert record["decision"] == "rejected" and sentence.inner_text() == record["checks"][0]["sentence"]
    page.goto("/assets/deployed_model")
    page.get_by_role("cell", name="decision", exact=True).wait_for()
    for key, value in {"decision": "rejected", "champion": champion, "audit": "models:/plumbline@champion"}.items():
        row = page.locator("tr").filter(has=page.get_by_role("cell", name=key, exact=True))
        assert value in row.first.inner_text(), key
