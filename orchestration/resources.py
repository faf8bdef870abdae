"""The resources that assets use, described as they are in this workspace."""

from plumbline.graph.resources import resources
from plumbline.params import load_params
from plumbline.workspace import workspace_root

RESOURCES = resources(workspace_root(), load_params())
