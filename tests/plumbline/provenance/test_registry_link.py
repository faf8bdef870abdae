"""What MLflow loads and shows for a version, changed by SQL or on disk: the audit's link says what and where."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.provenance.audit import open_read_case
from plumbline.provenance.history_link import promotion_history
from plumbline.provenance.registry import registry
from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import ModelUri
from plumbline.tracking.promotion import promote
from plumbline.tracking.registry import Registry, open_registry
from tests.helpers.small_chain import CHOICE, MODEL, OTHER, SCHEME, SET
from tests.helpers.tracking import mlflow_client

RUN = "(SELECT run_id FROM model_versions WHERE version = 1)"
LOGGED = f"(SELECT model_id FROM logged_models WHERE name = '{CHOICE}-{SCHEME}')"
OTHERS = f"(SELECT model_id FROM logged_models WHERE name = '{OTHER.rsplit('/', 1)[-1]}')"
INPUT = f"(SELECT input_uuid FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN})"
DATASET = f"(SELECT source_id FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN})"


def sql(root: Path, statement: str) -> None:
    database = sqlite3.connect(root / "mlflow.db")
    with database:
        assert database.execute(statement).rowcount, statement
    database.close()


def said(root: Path, model: str = MODEL, uri: str = "") -> dict[str, str]:
    """The two links of the registry that do not verify, and what they say."""
    case = open_read_case(root / model, root)
    if uri:
        case.version = open_registry(root, read_only=True).resolve(ModelUri.parse(uri))
    links = [link for link in (registry(case), promotion_history(case)) if link is not None]
    assert links
    return {link.name: link.meaning for link in links if link.status != "verified"}


def version(change: str) -> str:
    return f"UPDATE model_versions SET {change} WHERE version = 1"


def tag(key: str, value: str) -> str:
    return f"UPDATE tags SET value = {value} WHERE key = '{key}' AND run_uuid = {RUN}"


STATEMENTS = {
    # what it says: the statement
    "its source is '/etc'": version("source = '/etc'"),
    "its source is 'models:/plumbline/2'": version("source = 'models:/plumbline/2'"),
    "its logged model has other": version(f"source = 'models:/' || {OTHERS}"),
    "its source models:/m-0 does not exist": version("source = 'models:/m-0'"),
    "it is loaded from file:///etc": version("storage_location = 'file:///etc'"),
    "its status is FAILED": version("status = 'FAILED'"),
    "another scheme": version(f"description = replace(description, '{SCHEME}', 'w8a8')"),
    "its description has another calibration set": version("description = replace(description, '(set ', '(set 0')"),
    "its description has another kl_mean": version("description = replace(description, 'model 0.0', 'model 0.00')"),
    "its description has another weights_bytes": version("description = replace(description, 'kB', 'MB')"),
    "its description has another share": version("description = replace(description, '`: 100 %', '`: 10 %')"),
    "its description has another digest": version("description = replace(description, '(digest ', '(digest 0')"),
    "the files of its logged model are at file:///etc/m-": f"UPDATE logged_models SET artifact_location = "
    f"'file:///etc/' || model_id WHERE model_id = {LOGGED}",
    "is called 'x'": f"UPDATE logged_models SET name = 'x' WHERE model_id = {LOGGED}",
    "of another run": f"UPDATE logged_models SET source_run_id = 'x' WHERE model_id = {LOGGED}",
    "does not exist": f"UPDATE logged_models SET lifecycle_stage = 'deleted' WHERE model_id = {LOGGED}",
    "status of its logged model is PENDING": f"UPDATE logged_models SET status = 1 WHERE model_id = {LOGGED}",
    "other model.md5": f"DELETE FROM logged_model_tags WHERE tag_key = 'model.md5' AND model_id = {LOGGED}",
    "metric kl_mean of its logged model is 0": "UPDATE logged_model_metrics SET metric_value = 0 WHERE metric_name = "
    f"'kl_mean' AND model_id = {LOGGED}",
    "its run was deleted": f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {RUN}",
    "the files of its run are at": f"UPDATE runs SET artifact_uri = 'file:///etc' WHERE run_uuid = {RUN}",
    "outside its experiment": f"UPDATE runs SET artifact_uri = artifact_uri || '/../../etc' WHERE run_uuid = {RUN}",
    "its metric kl_mean is 0,": f"UPDATE metrics SET value = 0 WHERE key = 'kl_mean' AND run_uuid = {RUN}",
    "its metric kl_mean is nan": f"UPDATE latest_metrics SET is_nan = 1 WHERE key = 'kl_mean' AND run_uuid = {RUN}",
    "another model_path": tag("model_path", "'x'"),
    "another calibration": tag("calibration", "'x'"),
    "its run has another scheme": tag("scheme", "'x'"),
    "the description of its run has another kl_mean": tag(
        "mlflow.note.content", "replace(value, 'base model 0.0', 'base model 0.00')"
    ),
    "names the dataset x ": f"UPDATE datasets SET name = 'x' WHERE dataset_uuid = {DATASET}",
    "names the dataset random-8 0": f"UPDATE datasets SET digest = '0' WHERE dataset_uuid = {DATASET}",
    "not its calibration set": f"UPDATE datasets SET dataset_source = '{{}}' WHERE dataset_uuid = {DATASET}",
    "names the dataset random-8": f"UPDATE input_tags SET value = 'x' WHERE input_uuid = {INPUT}",
    "the dataset of none": f"DELETE FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN}",
    "another logged model as its output": f"UPDATE inputs SET destination_id = {OTHERS} WHERE source_type = "
    f"'RUN_OUTPUT' AND source_id = {RUN}",
}


@pytest.mark.parametrize("says", STATEMENTS)
def test_a_column_that_decides_what_is_loaded_or_read(says: str, both: Path) -> None:
    sql(both, STATEMENTS[says])
    result = said(both)
    assert result.keys() <= {"registry", "promotion history"} and says in result["registry"], result


def test_the_intact_versions_agree_also_without_the_samples_of_the_page(both: Path) -> None:
    assert said(both) == {} and said(both, OTHER) == {}


def test_descriptions_state_no_other_promotion(both: Path) -> None:
    statement = "UPDATE {} SET description = replace(description, 'by Ada', 'by Eve')"
    sql(both, statement.format("registered_models"))
    assert said(both) == {"promotion history": "the description of the registered model has another history"}
    sql(both, statement.format("model_versions") + " WHERE version = 1")
    assert "the description of version 1 has another history" in said(both)["promotion history"]


def test_an_alias_of_a_version_that_mlflow_hides(both: Path) -> None:
    sql(both, version("current_stage = 'Deleted_Internal'"))
    assert "the alias names version 1, which MLflow does not list" in said(both)["promotion history"]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def loaded_from(root: Path) -> Path:
    [path] = (root / "mlruns/models").glob("*/artifacts/MLmodel")
    return path.parent


def other_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).unlink(missing_ok=True)  # not the cache's object, to which it may be a hard link
        (folder / name).write_bytes(change(data))

    return edit


FILES: dict[str, Callable[[Path], Any]] = {
    "model.safetensors changed": other_bytes("model/model.safetensors", lambda data: data[:-1] + b"\1"),
    "loader.py was added": other_bytes("model/loader.py", lambda data: b"import os"),
    "components/tokenizer/tokenizer.json is not of the model": other_bytes(
        "components/tokenizer/tokenizer.json", lambda data: data + b" "
    ),
    "code.py is not of the model": other_bytes("code.py", lambda data: b"import os"),
    "MLmodel has another transformers.code": other_bytes("MLmodel", lambda d: d.replace(b"code: null", b"code: code")),
    "another python_function.loader_module": other_bytes(
        "MLmodel", lambda d: d.replace(b": mlflow.transformers", b": x")
    ),
    "another transformers.model_binary": other_bytes("MLmodel", lambda d: d.replace(b"binary: model", b"binary: /tmp")),
    "has the flavor sklearn": other_bytes("MLmodel", lambda d: d.replace(b"flavors:", b"flavors:\n  sklearn: {}")),
    "MLmodel cannot be read": other_bytes("MLmodel", lambda data: b"{"),
    "requirements.txt names other packages": other_bytes("requirements.txt", lambda data: data + b"x @ http://x/y\n"),
    "python_env.yaml names other packages": other_bytes("python_env.yaml", lambda data: b"dependencies: [x]"),
}


@pytest.mark.parametrize("says", FILES)
def test_a_file_that_mlflow_loads(says: str, both: Path) -> None:
    FILES[says](loaded_from(both))
    assert says in said(both)["registry"]


def test_files_elsewhere_on_which_version_and_logged_model_agree(both: Path, tmp_path: Path) -> None:
    place = (tmp_path / "elsewhere").as_uri()
    sql(both, f"UPDATE logged_models SET artifact_location = '{place}' WHERE model_id = {LOGGED}")
    sql(both, version(f"storage_location = '{place}'"))
    assert "outside its experiment" in said(both)["registry"]


# ---------------------------------------------------------------------------------------------------------------------
# No false alarm


@pytest.mark.parametrize("how", ["moved", "copied", "without the files"])
def test_a_workspace_at_another_place(how: str, both: Path, tmp_path: Path) -> None:
    place = tmp_path / "Größe und mehr"
    if how == "copied":
        shutil.copytree(both, place)
    else:
        both.rename(place)
    if how == "without the files":
        shutil.rmtree(place / "mlruns")
    before = (place / "mlflow.db").read_bytes()
    assert said(place) == {} and said(place, OTHER) == {}
    assert (place / "mlflow.db").read_bytes() == before


def test_a_file_of_a_copied_workspace_is_that_beside_its_database(both: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(both, tmp_path / "copy"))
    FILES["model.safetensors changed"](loaded_from(place))
    assert "model.safetensors changed" in said(place)["registry"] and said(both) == {}


def test_a_version_that_mlflow_copied_to_another_name(both: Path) -> None:
    tracking = Tracking(f"sqlite:///{both / 'mlflow.db'}")
    with tracking.client() as client:
        client.copy_model_version("models:/plumbline/1", "production")
    assert said(both, uri="models:/production/1") == {}
    sql(both, "UPDATE model_versions SET source = 'models:/plumbline/2' WHERE name = 'production'")
    assert "its source is 'models:/plumbline/2'" in said(both, uri="models:/production/1")["registry"]


def test_words_of_people_and_a_second_promotion(both: Path) -> None:
    client = mlflow_client(Tracking(f"sqlite:///{both / 'mlflow.db'}"))
    text = client.get_model_version("plumbline", "1").description
    client.update_model_version("plumbline", "1", f"For support. Perplexity is fine.\n\n{text}")
    promote(Registry(Tracking(f"sqlite:///{both / 'mlflow.db'}")), both, "2", "Bob", "better")
    client.delete_model_version("plumbline", "1")
    assert said(both, OTHER) == {}


def test_the_set_is_that_of_the_dataset(both: Path) -> None:
    sql(both, f'UPDATE datasets SET dataset_source = \'{{"uri": "{SET}/x"}}\' WHERE dataset_uuid = {DATASET}')
    assert "not its calibration set" in said(both)["registry"]
