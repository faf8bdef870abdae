"""Reports artifacts made outside Dagster to Dagster, from dvc.lock, so that it does not consider them stale."""

from __future__ import annotations

import dagster as dg

from plumbline.graph.step import provenance_tags
from plumbline.versioning.lock import read_lock, stage_name
from plumbline.workspace import workspace_root


def reconcile(instance: dg.DagsterInstance, defs: dg.Definitions) -> list[str]:
    """Report every dvc.lock entry that differs from Dagster's newest event in content or code version.

    The code version is the one recorded in the entry. Assets are reported upstream first, because downstream events
    point at upstream events. Returns the names of the reported stages.
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
            versions = (tags.get("dagster/data_version"), tags.get("dagster/code_version"))
            if versions == (entry.md5, entry.code_version):
                continue
            event = dg.AssetMaterialization(
                key,
                partition=partition,
                tags=provenance_tags(instance, set(node.parent_keys), entry),
                metadata={"dvc_md5": entry.md5, "dvc_stage": stage, "front_door": "dvc"},
            )
            instance.report_runless_asset_event(event)
            reported.append(stage)
    return reported
