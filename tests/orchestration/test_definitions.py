"""The graph: Dagster's and DVC's are one, and nothing heavy is imported to load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import yaml

from assets.production_drift import production_drift
from orchestration.definitions import ASSETS, defs
from orchestration.resources import RESOURCES
from plumbline.graph.partitions import CALIBRATIONS, PAIRS, PAIRS_OF_CALIBRATION
from plumbline.graph.pool import HEAVY
from plumbline.params import load_params
from plumbline.versioning.facts import FACTS, NAMED_OUTPUTS, STAGES
from plumbline.versioning.lock import stage_name
from tests.helpers.paths import PROJECT


def dvc_stages() -> dict[str, dict]:
    """Stage name -> data folders it reads, those whose partitions it names in data/named_outputs.yaml included."""
    from dvc.repo import Repo

    stages = {}
    for stage in Repo(str(PROJECT)).index.stages:
        if stage.name in STAGES:  # of no asset
            continue
        paths = {d.def_path for d in stage.deps if str(d.def_path).startswith("data/") and d.def_path not in FACTS}
        named = next((d.params for d in stage.deps if d.def_path == NAMED_OUTPUTS), [])
        stages[stage.name] = {
            "deps": paths | {f"data/{asset}" for asset in named},
            "outs": [str(o) for o in stage.outs],
        }
    return stages


def dagster_nodes() -> dict[str, dict]:
    """Stage name -> data folders it reads, as the asset graph and its partition mappings have it."""
    params = load_params(PROJECT)
    graph = defs.resolve_asset_graph()
    nodes = {}
    for asset in ASSETS:
        node = graph.get(asset.key)
        name = asset.key.to_user_string()
        for key in node.partitions_def.get_partition_keys() if node.partitions_def else [None]:
            deps = set()
            for parent in node.parent_keys:
                upstream = graph.get(parent)
                folder = f"data/{parent.to_user_string()}"
                if upstream.is_external:
                    continue
                if not upstream.partitions_def or key is None:
                    deps.add(folder)
                elif upstream.partitions_def == node.partitions_def:
                    deps.add(f"{folder}/{key}")
                else:
                    deps.add(f"{folder}/{params.pairs()[key][0]}")
            nodes[stage_name(name, key)] = {
                "deps": deps,
                "outs": [f"data/{name}/{key}" if key else f"data/{name}"],
            }
    return nodes


def test_dvc_and_dagster_have_the_same_graph() -> None:
    assert dvc_stages() == dagster_nodes()


def test_partition_mapping_agrees_with_the_grid() -> None:
    for key, (calibration, _) in load_params(PROJECT).pairs().items():
        upstream = PAIRS_OF_CALIBRATION.get_upstream_mapped_partitions_result_for_partitions(
            PAIRS.subset_with_partition_keys([key]), PAIRS, CALIBRATIONS
        )
        assert set(upstream.partitions_subset.get_partition_keys()) == {calibration}


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "sentence_transformers", "mlflow", "dvc", "matplotlib"]
    code = f"import orchestration.definitions, sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_loading_the_definitions_parses_what_the_workspaces_memo_lacks() -> None:
    """This process has written the memo of this workspace when it loaded them."""
    code = (
        "import plumbline.versioning.code as code\n"
        "parsed, parse = [], code._parse\n"
        "code._parse = lambda *source: parsed.append(source[1]) or parse(*source)\n"
        "import orchestration.definitions; print(parsed)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "sentence_transformers", "mlflow", "dvc", "dagster", "matplotlib"]
    code = (
        "import sys, contextlib\n"
        "from plumbline.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("[]")


def test_string_selections_work() -> None:
    """antlr as pip resolves dagster and dvc by themselves breaks them; pyproject.toml says how it is kept right."""
    everything = dg.AssetSelection.from_string("*").resolve(defs.resolve_asset_graph())
    assert everything >= {asset.key for asset in ASSETS}


def test_every_asset_says_what_it_is() -> None:
    graph = defs.resolve_asset_graph()
    for asset in ASSETS:
        node = graph.get(asset.key)
        assert node.description and node.group_name and node.owners and node.kinds and node.code_version


def test_groups_read_from_earlier_groups_only() -> None:
    """Dagster draws the groups in the order of flow only if they form no circle."""
    graph = defs.resolve_asset_graph()
    for asset in ASSETS:
        group = graph.get(asset.key).group_name
        for parent in graph.get(asset.key).parent_keys:
            assert graph.get(parent).group_name <= group, (asset.key, parent)


def test_a_code_server_can_load_everything() -> None:
    """Jobs and assets share their names, which Dagster finds out only when it loads them all."""
    defs.get_repository_def().load_all_definitions()


def test_every_asset_page_links_to_its_function() -> None:
    graph = defs.resolve_asset_graph()
    for asset in [*ASSETS, production_drift]:
        [link] = graph.get(asset.key).metadata["dagster/code_references"].code_references
        lines = Path(link.file_path).read_text().splitlines()
        name = asset.key.to_user_string()
        assert Path(link.file_path) == PROJECT / f"assets/{name}.py"
        assert any(f"def {name}(" in line for line in lines[link.line_number - 1 :])


def test_resources_say_what_they_are_and_take_no_configuration() -> None:
    used: dict[str, set[str]] = {}
    for asset in [*ASSETS, production_drift]:
        for key in asset.required_resource_keys - {"io_manager"}:
            used.setdefault(key, set()).add(asset.key.to_user_string())
    assert used.keys() == RESOURCES.keys() == {"base_model", "dvc", "mlflow"}
    assert used["mlflow"] == {"evaluation", "calibration_report", "deployed_model", "study", "production_drift"}
    assert "llama-stdlib-6m" in RESOURCES["base_model"].description
    assert all(resource.config_schema.config_type.given_name in (None, "Any") for resource in RESOURCES.values())


def test_values_of_a_launch_are_described() -> None:
    described = set()
    for asset in ASSETS:
        fields = getattr(asset.op.config_schema.config_type, "fields", {})
        assert all(field.description for field in fields.values()), asset.key
        described |= {asset.key.to_user_string()} if fields else set()
    assert described == {"calibration_choice", "activation_stats", "tokenized_samples"}


def test_what_is_measured_from_time_to_time_has_a_freshness_policy() -> None:
    graph = defs.resolve_asset_graph()
    fresh = {key.to_user_string() for key in graph.executable_asset_keys if graph.get(key).freshness_policy}
    assert fresh == {"production_drift", "deployed_model"}


def test_what_holds_a_model_is_in_the_pool() -> None:
    """The pool's limit is in dagster.yaml."""
    heavy = {asset.key.to_user_string() for asset in [*ASSETS, production_drift] if asset.op.pool == HEAVY}
    assert heavy == {
        *("sample_features", "calibration_set", "activation_stats", "quantized_model", "evaluation", "study"),
        "production_drift",
    }
    settings = yaml.safe_load((PROJECT / ".dagster/dagster.yaml").read_text())
    assert settings["concurrency"]["pools"] == {"default_limit": 1, "granularity": "run"}
