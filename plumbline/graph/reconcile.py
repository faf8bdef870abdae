"""dvc.lock -> Dagster: reports what came about outside Dagster, so that neither door finds the other's work stale."""

from __future__ import annotations

import dagster as dg

from plumbline.graph.step import provenance_tags
from plumbline.versioning.lock import read_lock, stage_name
from plumbline.workspace import workspace_root


def reconcile(instance: dg.DagsterInstance, defs: dg.Definitions) -> list[str]:
    """Report every dvc.lock entry whose content or code version Dagster's newest event does not carry.

    The code version is that of the code which made the output, read from the entry. Upstream comes first, so that
    downstream events point behind it. Returns the names of the stages that were reported.
    """
    lock = read_lock(workspace_root())
    graph = defs.resolve_asset_graph()
    reported = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        name = key.to_user_string()
        partitions = node.partitions_def.get_partition_keys() if node.partitions_def else [None]
        for partition in partitions:
            stage = stage_name(name, partition)
            entry = lock.get(stage)
            if entry is None:
                continue
            record = instance.get_latest_data_version_record(key, partition_key=partition)
            tags = (record.event_log_entry.tags or {}) if record else {}
            known = (tags.get("dagster/data_version"), tags.get("dagster/code_version"))
            made = (entry.md5, entry.code_version)
            if known == made:
                continue
            event = dg.AssetMaterialization(
                key,
                partition=partition,
                tags=provenance_tags(instance, set(node.parent_keys), entry),
                metadata={"dvc_md5": made[0], "dvc_stage": stage, "front_door": "dvc"},
            )
            instance.report_runless_asset_event(event)
            reported.append(stage)
    return reported
