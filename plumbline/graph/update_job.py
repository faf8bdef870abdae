"""Jobs that do what `plumbline run` does: every asset and partition that is out of date, upstream first.

An asset job of Dagster takes one partition of assets that are partitioned alike. Choices, pairs and single artifacts
are not, so these jobs have one step, which starts a run per asset.
"""

from collections.abc import Sequence

import dagster as dg

from plumbline.graph.step import reported
from plumbline.workspace import workspace_root


def update_job(name: str, assets: Sequence[dg.AssetsDefinition], description: str) -> dg.JobDefinition:
    """A job that brings these assets up to date; none: all but those that run on request."""
    only = [asset.key.to_user_string() for asset in assets]

    @dg.op(name=f"update_{name}", description=f"{description} One run per asset; this log names them.")
    def update(context: dg.OpExecutionContext) -> None:
        from plumbline.graph.run import run_graph

        with reported(context, name):
            steps = run_graph(workspace_root(), only, context.log.info)
        context.log.info(f"{steps} steps ran" if steps else "everything was up to date")

    @dg.job(name=name, description=description)
    def job() -> None:
        update()

    return job
