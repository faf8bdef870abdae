"""What an experiment's page in MLflow opens on: training runs, with the figures that decide as columns.

MLflow opens an experiment on traces of agents unless the address says otherwise, and shows no figure in its table. It
reads a table's columns and order from a saved view, which is a tag of the experiment, and its kind from the address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"
"""Tag: the description of an experiment or run."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tags: these are training runs, not traces of agents."""
TRAINING = "workflowType=machine_learning"
"""The same in an address."""
VIEW = "plumbline"
SAVED = f"mlflow.sharedViewState.{VIEW}"
"""Tag: the saved view, also in the page's list of views."""


@dataclass(frozen=True)
class View:
    """How an experiment is shown."""

    name: str
    columns: Sequence[str]
    """As `metrics.kl_mean` or `tags.scheme`, from left to right."""
    order: str
    """The column by which the runs are sorted, the lowest first."""
    description: str
    primary: str = "kl_mean"
    """The metric whose chart comes first."""

    def tags(self) -> dict[str, str]:
        """The tags of the experiment."""
        columns = {_column(name): 60 + 8 * len(name.partition(".")[2]) for name in self.columns}
        state = {
            "selectedColumns": list(columns),
            "columnOrder": list(columns),
            "columnWidths": columns,
            "orderByKey": _column(self.order),
            "orderByAsc": True,
        }
        saved = {"name": self.name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
        primary = {
            "mlflow.experiment.primaryMetric.name": self.primary,
            "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
        }
        return {**KIND, **primary, SAVED: json.dumps(saved), NOTE: self.description}


EVALUATIONS = View(
    "figures of every model",
    (
        "metrics.kl_mean",
        "metrics.perplexity_quantized",
        "metrics.top1_agreement",
        "metrics.weights_bytes",
        "tags.calibration",
        "tags.scheme",
        "attributes.Duration",
    ),
    "metrics.kl_mean",
    "Every quantized model, evaluated against its base model on documents that no calibration choice could use.\n\n"
    "* One run per calibration choice and scheme, and one named `calibration report` with the verdict: is one choice "
    "better, or is the difference chance?\n"
    "* The view *figures of every model* (at the top right, Views) has the columns that decide. KL: divergence from "
    "the base model in nats per token; lower is better.\n"
    "* A run's artifacts have the error of each layer, the figures by domain and length, and the calibration "
    "samples.\n"
    "* The champion is the version with the alias `champion` of the registered model.",
)
STUDIES = View(
    "figures of every arm",
    (
        "metrics.kl_mean",
        "metrics.difference",
        "metrics.p_adjusted",
        "tags.verdict",
        "params.rule",
        "params.n",
        "params.scheme",
    ),
    "metrics.kl_mean",
    "Studies of rules that choose calibration texts: a run per study, with the page as its artifact, and a child run "
    "per scheme, size and rule. A difference is that of the mean KL from the baseline's, in nats per token.",
)


def apply(client: MlflowClient, experiment_id: str, view: View, tags: Mapping[str, str]) -> None:
    """Set the tags of an experiment that differ; a description that it has is left as it is.

    Args:
        tags: those it has.
    """
    for name, value in view.tags().items():
        if tags.get(name) != value and not (name == NOTE and tags.get(NOTE)):
            client.set_experiment_tag(experiment_id, name, value)


def runs_page(base: str, experiment_id: str) -> str:
    """The address of an experiment's table of runs, with the columns of its view."""
    return f"{base}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&{TRAINING}"


def _column(name: str) -> str:
    """MLflow's name of a column: metrics.kl_mean -> metrics.`kl_mean`."""
    kind, _, key = name.partition(".")
    return f"{kind}.`{key}`"
