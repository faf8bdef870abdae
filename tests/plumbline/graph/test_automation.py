"""What runs by itself when new data comes in: each thing once, and nothing before its inputs have settled."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from orchestration.definitions import ASSETS, defs
from plumbline.params import load_params

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # of Dagster's own tester
CHOICES = list(load_params().calibrations)
COMPARED = list(load_params().grid.calibrations)
PAIRS = list(load_params().pairs())


class Ticks:
    """The automation sensor over the project's own graph, on a workspace where everything has been made once."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor = None
        for asset in ASSETS:
            self.made(asset.key.to_user_string(), "first")
        assert self.tick() == {}

    def made(self, name: str, content: str, keys: list[str] | None = None) -> None:
        """Report an asset, or some of its partitions, as materialized with this content."""
        [asset] = [a for a in ASSETS if a.key == dg.AssetKey(name)]
        tags = {"dagster/data_version": content, "dagster/code_version": asset.code_versions_by_key[asset.key] or ""}
        for key in keys or (asset.partitions_def.get_partition_keys() if asset.partitions_def else [None]):
            self.instance.report_runless_asset_event(dg.AssetMaterialization(name, partition=key, tags=tags))

    def tick(self) -> dict[str, list[str]]:
        """Partitions that would be run, by asset; the daemon would now run them."""
        result = dg.evaluate_automation_conditions(defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {
            asset.key.to_user_string(): sorted(map(str, result.get_requested_partitions(asset.key)))
            for asset in ASSETS
            if result.get_num_requested(asset.key)
        }


@pytest.fixture
def ticks() -> Iterator[Ticks]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Ticks(instance)


def test_new_data_goes_down_the_graph_one_layer_at_a_time(ticks: Ticks) -> None:
    ticks.made("raw_corpus", "second")
    ticks.made("tokenized_samples", "second")
    ticks.made("sample_features", "second")
    assert ticks.tick() == {"calibration_set": sorted(CHOICES)}  # evaluations read the samples, too: they wait
    ticks.made("calibration_set", "second")
    assert ticks.tick() == {"activation_stats": sorted(CHOICES)}
    ticks.made("activation_stats", "second")
    assert ticks.tick() == {"quantized_model": sorted(PAIRS), "sample_page": sorted(CHOICES)}
    ticks.made("quantized_model", "second")
    ticks.made("sample_page", "second")
    assert ticks.tick() == {"evaluation": sorted(PAIRS)}  # once, for the samples and the models
    ticks.made("evaluation", "second")
    assert ticks.tick() == {"calibration_report": ["None"]}
    ticks.made("calibration_report", "second")
    assert ticks.tick() == {"deployed_model": ["None"]}  # decides by its checks
    ticks.made("deployed_model", "second")
    assert ticks.tick() == {}


def test_what_came_out_the_same_leads_no_further(ticks: Ticks) -> None:
    ticks.made("tokenized_samples", "second")
    ticks.made("sample_features", "second")
    assert set(ticks.tick()) == {"calibration_set"}
    ticks.made("calibration_set", "first")  # the new documents were not chosen
    assert ticks.tick() == {"evaluation": sorted(PAIRS)}


def test_a_changed_choice_leaves_the_others_alone(ticks: Ticks) -> None:
    choice = COMPARED[0]
    ticks.made("calibration_choice", "second", [choice])
    assert ticks.tick() == {"calibration_set": [choice]}
    ticks.made("calibration_set", "second", [choice])
    assert ticks.tick() == {"activation_stats": [choice]}
    ticks.made("activation_stats", "second", [choice])
    pairs = sorted(key for key, (of, _) in load_params().pairs().items() if of == choice)
    assert ticks.tick() == {"quantized_model": pairs, "sample_page": [choice]}


def test_a_change_right_behind_a_run_is_seen(ticks: Ticks) -> None:
    choice = COMPARED[0]
    ticks.made("calibration_set", "first", [choice])
    ticks.made("calibration_choice", "second", [choice])
    assert ticks.tick() == {"calibration_set": [choice]}
    assert ticks.tick() == {}


def test_a_run_that_read_the_change_has_handled_it(ticks: Ticks) -> None:
    choice = COMPARED[0]
    ticks.made("calibration_choice", "second", [choice])
    ticks.made("calibration_set", "first", [choice])
    assert ticks.tick() == {}


def test_a_new_file_in_the_inbox_is_left_to_its_sensor(ticks: Ticks) -> None:
    ticks.instance.report_runless_asset_event(
        dg.AssetMaterialization("inbox", tags={"dagster/data_version": "with another file"})
    )
    assert ticks.tick() == {}


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_blocking_check_holds_everything_behind_it(ticks: Ticks, passed: bool) -> None:
    ticks.made("calibration_set", "second")
    for check in ("no_report_document_is_used", "tokenized_as_the_corpus"):
        ticks.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=dg.AssetKey("calibration_set"), check_name=check, passed=passed)
        )
    assert ("activation_stats" in ticks.tick()) is passed
