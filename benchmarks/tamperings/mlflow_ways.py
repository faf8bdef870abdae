"""Tamperings with what MLflow loads and shows: sources, locations, files, runs, datasets, descriptions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.tamperings import chain
from benchmarks.tamperings.forging import flip, sql, version_of
from benchmarks.tamperings.way import Way

VERSION = "(SELECT version FROM model_version_tags WHERE key = 'pair' AND value = '{}')"
OURS, OTHERS = VERSION.format(chain.CHAMPION), VERSION.format(chain.OTHER)
RUN = f"(SELECT run_id FROM model_versions WHERE version = {OURS})"
MODEL = f"(SELECT model_id FROM logged_models WHERE name = '{chain.CHAMPION}')"
OTHER_MODEL = f"(SELECT model_id FROM logged_models WHERE name = '{chain.OTHER}')"
INPUT = f"(SELECT input_uuid FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN})"
DATASET = f"(SELECT source_id FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN})"


def execute(statement: str, *values: str) -> Callable[[Path], None]:
    return lambda root: sql(root, statement, *values)


def of_version(column: str, value: str) -> Callable[[Path], None]:
    """Change a column of the champion's version; the value is an SQL expression."""
    return execute(f"UPDATE model_versions SET {column} = {value} WHERE version = {OURS}")


def of_run(table: str, key: str, value: str) -> Callable[[Path], None]:
    return execute(f"UPDATE {table} SET value = ? WHERE key = ? AND run_uuid = {RUN}", value, key)


def stated(text: str, other: str) -> Callable[[Path], None]:
    """Replace a text in the version's description."""
    return of_version("description", f"replace(description, '{text}', '{other}')")


def noted(text: str, other: str) -> Callable[[Path], None]:
    """Replace a text in the description of the run."""
    return execute(
        f"UPDATE tags SET value = replace(value, ?, ?) WHERE key = 'mlflow.note.content' AND run_uuid = {RUN}",
        text,
        other,
    )


def logged(root: Path) -> Path:
    """The folder that MLflow loads the champion from."""
    version = version_of(root, chain.CHAMPION)
    [folder] = [
        path.parent
        for path in (root / "mlruns/models").glob("*/artifacts/MLmodel")
        if f"source_model_name: {chain.CHAMPION}" in path.read_text()
    ]
    assert version
    return folder


def weights(root: Path) -> None:
    """Other weights where MLflow loads the champion from; DVC's objects stay as they are."""
    path = logged(root) / "model" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    flip(path)


def tokenizer(root: Path) -> None:
    path = logged(root) / "components/tokenizer/tokenizer_config.json"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("{", '{"add_prefix_space": true, ', 1))


def edited(name: str, before: str, after: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = logged(root) / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return edit


def code_added(root: Path) -> None:
    (logged(root) / "code").mkdir()
    (logged(root) / "code" / "loader.py").write_text("print('loaded')\n")


def moved_together(root: Path) -> None:
    """Version and logged model agree on a folder outside of MLflow's, with another model."""
    place = root.with_name(f"{root.name}-elsewhere")
    shutil.copytree(logged(root), place)
    sql(root, f"UPDATE logged_models SET artifact_location = ? WHERE model_id = {MODEL}", place.as_uri())
    sql(root, f"UPDATE model_versions SET storage_location = ? WHERE version = {OURS}", place.as_uri())


def run_files(root: Path) -> Path:
    [folder] = [path.parent.parent for path in (root / "mlruns").glob("*/artifacts/plots/kl_by_domain.png")][:1]
    return folder


def of_every_run(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        for plot in (root / "mlruns").glob("*/artifacts/plots/kl_by_domain.png"):
            change(plot.parent.parent)

    return edit


def plot(folder: Path) -> None:
    path = folder / "plots/kl_by_domain.png"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b"\0")


def layer_table(folder: Path) -> None:
    path = folder / "layer_errors.json"
    path.write_text(path.read_text().replace("0.0", "0.00"))


def promotion_invented(root: Path) -> None:
    line = "* 2026-01-01 00:00 UTC: version 9 promoted by the board: approved"
    sql(root, f"UPDATE model_versions SET description = description || char(10) || ? WHERE version = {OURS}", line)


WAYS = [
    Way("MLflow: source a folder", of_version("source", "'/etc'"), "registry"),
    Way("MLflow: source a run", of_version("source", "'runs:/' || run_id || '/model'"), "registry"),
    Way("MLflow: source of the other version", of_version("source", f"'models:/' || {OTHER_MODEL}"), "registry"),
    Way("MLflow: source that is not there", of_version("source", "'models:/m-' || hex(zeroblob(16))"), "registry"),
    Way("MLflow: source a version", of_version("source", f"'models:/plumbline/' || {OTHERS}"), "registry"),
    Way("MLflow: storage location", of_version("storage_location", "'file:///etc'"), "registry"),
    Way(
        "MLflow: storage location of the other version",
        of_version("storage_location", f"(SELECT artifact_location FROM logged_models WHERE model_id = {OTHER_MODEL})"),
        "registry",
    ),
    Way("MLflow: source and location outside", moved_together, "registry"),
    Way("MLflow: status of the version", of_version("status", "'FAILED_REGISTRATION'"), "registry"),
    Way(
        "MLflow: stage of a deleted version",
        of_version("current_stage", "'Deleted_Internal'"),
        "promotion history",
        reference=chain.MODEL,
    ),
    Way("MLflow: scheme in the description", stated(chain.SCHEME, "w8a8"), "registry"),
    Way("MLflow: KL in the description", stated("KL to the base model ", "KL to the base model 0."), "registry"),
    Way("MLflow: agreement in the description", stated("same next token 0.", "same next token 1."), "registry"),
    Way("MLflow: set in the description", stated("(set ", "(set 0"), "registry"),
    Way("MLflow: share in the description", stated("`: 100 %", "`: 99 %"), "registry"),
    Way("MLflow: who in the description", stated("by Ada", "by Eve"), "promotion history"),
    Way("MLflow: a promotion in the description", promotion_invented, "promotion history"),
    Way(
        "MLflow: who in the model's description",
        execute("UPDATE registered_models SET description = replace(description, 'by Ada', 'by Eve')"),
        "promotion history",
    ),
    Way(
        "MLflow: hash of the logged model",
        execute(f"UPDATE logged_model_tags SET tag_value = '0' WHERE tag_key = 'model.md5' AND model_id = {MODEL}"),
        "registry",
    ),
    Way(
        "MLflow: name of the logged model",
        execute(f"UPDATE logged_models SET name = 'better' WHERE model_id = {MODEL}"),
        "registry",
    ),
    Way(
        "MLflow: run of the logged model",
        execute(f"UPDATE logged_models SET source_run_id = 'ab' WHERE model_id = {MODEL}"),
        "registry",
    ),
    Way(
        "MLflow: logged model deleted",
        execute(f"UPDATE logged_models SET lifecycle_stage = 'deleted' WHERE model_id = {MODEL}"),
        "registry",
    ),
    Way(
        "MLflow: status of the logged model",
        execute(f"UPDATE logged_models SET status = 3 WHERE model_id = {MODEL}"),
        "registry",
    ),
    Way(
        "MLflow: metric of the logged model",
        execute(
            f"UPDATE logged_model_metrics SET metric_value = 0 WHERE metric_name = 'kl_mean' AND model_id = {MODEL}"
        ),
        "registry",
    ),
    Way("MLflow: weights where it loads them", weights, "registry"),
    Way("MLflow: tokenizer where it loads it", tokenizer, "registry"),
    Way("MLflow: a file added where it loads", code_added, "registry"),
    Way("MLflow: code in MLmodel", edited("MLmodel", "code: null", "code: code"), "registry"),
    Way(
        "MLflow: loader in MLmodel",
        edited("MLmodel", "loader_module: mlflow.transformers", "loader_module: loader"),
        "registry",
    ),
    Way("MLflow: folder in MLmodel", edited("MLmodel", "model_binary: model", "model_binary: /tmp"), "registry"),
    Way("MLflow: packages of the model", edited("requirements.txt", "mlflow==", "evil\nmlflow=="), "registry"),
    Way(
        "MLflow: run deleted in the UI",
        execute(f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {RUN}"),
        "registry",
    ),
    Way(
        "MLflow: files of the run",
        execute(f"UPDATE runs SET artifact_uri = 'file:///etc' WHERE run_uuid = {RUN}"),
        "registry",
    ),
    Way("MLflow: a plot of the run", of_every_run(plot), "registry"),
    Way("MLflow: a table of the run", of_every_run(layer_table), "registry"),
    Way("MLflow: metric in the charts", of_run("metrics", "kl_mean", "0.0"), "registry"),
    Way(
        "MLflow: metric not a number",
        execute(f"UPDATE latest_metrics SET is_nan = 1 WHERE key = 'kl_mean' AND run_uuid = {RUN}"),
        "registry",
    ),
    Way("MLflow: parameter of the base model", of_run("params", "base_model.name", "another"), "registry"),
    Way("MLflow: revision of the base model", of_run("params", "base_model.revision", "v2"), "registry"),
    Way("MLflow: path in the run", of_run("tags", "model_path", chain.OTHER_MODEL), "registry"),
    Way("MLflow: choice in the run", of_run("tags", "calibration", chain.OTHER_CHOICE), "registry"),
    Way("MLflow: scheme in the run", of_run("tags", "scheme", "w8a8"), "registry"),
    Way("MLflow: KL in the run's description", noted("base model ", "base model 0."), "registry"),
    Way("MLflow: choice in the run's description", noted(f"choice `{chain.CHOICE}", "choice `x"), "registry"),
    Way(
        "MLflow: digest of the run's dataset",
        execute(f"UPDATE datasets SET digest = '0' WHERE dataset_uuid = {DATASET}"),
        "registry",
    ),
    Way(
        "MLflow: source of the run's dataset",
        execute(f"UPDATE datasets SET dataset_source = ? WHERE dataset_uuid = {DATASET}", '{"uri": "licensed"}'),
        "registry",
    ),
    Way(
        "MLflow: name of the run's dataset",
        execute(f"UPDATE datasets SET name = 'x' WHERE dataset_uuid = {DATASET}"),
        "registry",
    ),
    Way(
        "MLflow: use of the run's dataset",
        execute(f"UPDATE input_tags SET value = 'evaluation' WHERE input_uuid = {INPUT}"),
        "registry",
    ),
    Way(
        "MLflow: the run's dataset removed",
        execute(f"DELETE FROM inputs WHERE source_type = 'DATASET' AND destination_id = {RUN}"),
        "registry",
    ),
    Way(
        "MLflow: output of the run",
        execute(
            f"UPDATE inputs SET destination_id = {OTHER_MODEL} WHERE source_type = 'RUN_OUTPUT' AND source_id = {RUN}"
        ),
        "registry",
    ),
]
