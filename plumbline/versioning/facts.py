"""Facts that stages depend on without reading them as files of dvc.yaml: the code, the base model, the grid's outputs.

Each is a stage of dvc.yaml that writes a small YAML file, which the other stages name in their `params`. A stage is out
of date when one of its values changes. A workspace whose dvc.yaml lacks the stage does without the fact.
"""

from __future__ import annotations

from plumbline.versioning.code import STAGE, VERSIONS

BASE_MODEL = "data/base_model.yaml"
"""Digests of the base model's files: `weights` of those that decide an activation, `tokenizer` of its tokenizer's."""
NAMED_OUTPUTS = "data/named_outputs.yaml"
"""Asset -> path -> DVC hash of the outputs that `grid:` names, without what earlier grids left."""
FACTS = {VERSIONS: STAGE, BASE_MODEL: "base_model", NAMED_OUTPUTS: "named_outputs"}
"""File -> the stage that writes it."""
STAGES = frozenset(FACTS.values())
MODEL_LINK = ".plumbline/base_model"
"""Symbolic link to the base model's folder in a workspace, which DVC watches. A file, if the model is on the hub."""
