"""What an experiment's page in MLflow opens on."""

from __future__ import annotations

import json
from pathlib import Path

from plumbline.tracking.client import Tracking
from plumbline.tracking.reading import experiments
from plumbline.tracking.view import EVALUATIONS, NOTE, SAVED, STUDIES, runs_page
from tests.helpers.tracking import log_evaluation, mlflow_client


def test_the_experiment_opens_on_training_runs_with_the_figures_as_columns(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    log_evaluation(tracking)
    client = mlflow_client(tracking)
    experiment = client.get_experiment_by_name(tracking.experiment)
    tags = experiment.tags
    assert tags["mlflow.experimentKind"] == "custom_model_development" and "quantized model" in tags[NOTE]
    saved = json.loads(tags[SAVED])
    assert isinstance(saved["name"], str) and isinstance(saved["createdAt"], int)  # MLflow ignores it otherwise
    state = json.loads(saved["state"])
    assert state["selectedColumns"][:4] == [
        "metrics.`kl_mean`",
        "metrics.`perplexity_quantized`",
        "metrics.`top1_agreement`",
        "metrics.`weights_bytes`",
    ]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`kl_mean`", True)
    assert experiments(tmp_path / "mlflow.db") == {"plumbline": experiment.experiment_id}
    page = runs_page("http://h:1", experiment.experiment_id)
    assert page.startswith(f"http://h:1/#/experiments/{experiment.experiment_id}/runs?")
    assert f"viewStateShareKey={SAVED.rpartition('.')[2]}" in page and "workflowType=machine_learning" in page


def test_an_older_experiment_gets_the_view_and_keeps_its_description(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with tracking.client() as client:
        number = client.create_experiment("plumbline", tags={NOTE: "Ours.", SAVED: "{}"})
    log_evaluation(tracking)
    tags = mlflow_client(tracking).get_experiment(number).tags
    assert tags[NOTE] == "Ours." and tags[SAVED] == EVALUATIONS.tags()[SAVED]


def test_there_is_nothing_to_show_without_a_store(tmp_path: Path) -> None:
    assert experiments(tmp_path / "mlflow.db") == {} and not list(tmp_path.iterdir())


def test_a_tag_of_an_experiment_is_short_enough_for_every_store() -> None:
    """MLflow takes 5000 characters."""
    for view in (EVALUATIONS, STUDIES):
        assert max(map(len, view.tags().values())) < 4000
