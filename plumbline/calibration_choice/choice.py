"""The parameters of a calibration choice: its entry in params.yaml, the overrides of a launch, and the defaults of the
strategy."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from plumbline.calibration_choice.params import ChoiceParams
from plumbline.calibration_set.strategies import get


def overrides(
    entry: ChoiceParams,
    strategy: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a launch changes of an entry; another strategy drops the options of the entry's own (None)."""
    core = {"strategy": strategy, "n": n, "seed": seed}
    changed = {name: value for name, value in core.items() if value is not None}
    foreign = entry.model_extra if strategy not in (None, entry.strategy) else None
    return {**dict.fromkeys(foreign or {}), **changed, **(options or {})}


def resolve(name: str, entry: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Check an entry of `calibrations:` against its strategy and fill in every default.

    Args:
        where: what an error blames; None: the entry in params.yaml.

    Raises:
        ValueError: unknown strategy, unknown option (the allowed ones are named) or a value of the wrong type.
    """
    where = where or f"params.yaml, calibrations: {name}"
    try:
        params = ChoiceParams.model_validate(dict(entry))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from error
    try:
        strategy = get(params.strategy)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    entries = dict(params.model_extra or {})
    allowed = sorted(strategy.options.model_fields)
    for option in sorted(entries.keys() - set(allowed)):
        raise ValueError(f"{where}: {_unknown_option(option, params.strategy, allowed)}")
    try:
        options = strategy.options.model_validate(entries)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from error
    core = params.model_dump(mode="json", include=set(ChoiceParams.model_fields))
    if params.domains is not None:
        core["domains"] = sorted(set(params.domains))  # a set of names: their order decides nothing
    return {"name": name, **core, **options.model_dump(mode="json")}


def require_launch(name: str, entry: ChoiceParams, changed: Mapping[str, Any]) -> None:
    """Refuse values of a launch that do not suit a choice.

    Args:
        changed: as `overrides` gives them.

    Raises:
        ValueError: as `resolve`; it blames the launch, as the entry in params.yaml may be right.
    """
    if changed:
        merged = {key: value for key, value in {**entry.model_dump(), **changed}.items() if value is not None}
        given = ", ".join(f"{key}: {value}" for key, value in changed.items() if value is not None)
        resolve(name, merged, f"the launch of calibration_choice {name} with {{{given}}}")


def explain(error: ValidationError) -> str:
    """Say each problem of a pydantic error as `key: what is wrong, found ...`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'entry'}: {problem['msg']}, found {problem['input']!r}"
        for problem in error.errors()
    )


def _unknown_option(option: str, strategy: str, allowed: list[str]) -> str:
    common = sorted(ChoiceParams.model_fields)
    close = get_close_matches(option, [*allowed, *common], n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    own = f"its options are {', '.join(allowed)}" if allowed else "it has no options of its own"
    return (
        f"strategy {strategy} has no option `{option}`{hint} ({own}; every choice has {', '.join(common)}). "
        f"Correct the name or remove it"
    )
