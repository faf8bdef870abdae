"""Values that a launch puts in the place of those in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from plumbline.calibration_choice.choice import explain

Section = TypeVar("Section", bound=BaseModel)


def launched(section: Section, given: Mapping[str, Any], asset: str) -> Section:
    """A section of params.yaml with the values of a launch; None leaves the section's own value.

    Only for values that change no byte of the artifact: dvc.lock does not record them. What determines a result is
    launched through `calibration_choice`.

    Raises:
        ValueError: a value is wrong; the message blames the launch, not params.yaml.
    """
    changed = {name: value for name, value in given.items() if value is not None}
    try:
        return type(section).model_validate({**section.model_dump(), **changed})
    except ValidationError as error:
        raise ValueError(f"the launch of {asset}: {explain(error)}; correct it in the launch's config") from error
