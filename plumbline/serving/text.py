"""The result of a check as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from plumbline.text_layout import WIDTH

ROWS = {
    "engines": "vLLM / transformers",
    "engines_on_base": "the same before quantization",
    "noise": "transformers / with noise in last bits",
    "simulated": "quantization, in transformers",
    "served": "quantization, in vLLM",
}
HEAD = {
    "passed": "{name} is served as simulated: {sentence}.",
    "failed": "{name} is NOT served as simulated: {sentence}.",
    "no kernel": "{name} was not served: {sentence}.",
}


def described(name: str, record: Mapping[str, Any], place: str, next_step: str) -> str:
    """Format a record: a sentence, the differences, under what they were found, what to do next.

    Args:
        name: of the model.
        record: as `check.serve_check` returns it.
        place: where the record was written; empty: nowhere.
        next_step: a command.
    """
    lines = textwrap.wrap(HEAD[record["verdict"]].format(name=name, sentence=record["sentence"]), WIDTH)
    if "measurements" in record:
        lines += ["", *_table(record["measurements"]), ""]
    lines += textwrap.wrap(_products(record), WIDTH, subsequent_indent="  ")
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    has = ", ".join(feature for feature, there in record["cpu"].items() if there) or "none of AVX2, AVX-512"
    lines += textwrap.wrap(f"with {versions}; CPU: {has}", WIDTH, subsequent_indent="  ")
    lines += [f"record: {place}"] if place else []
    return "\n".join([*lines, f"next: {next_step}"])


def summary_row(name: str, record: Mapping[str, Any]) -> str:
    """A line about one of several models."""
    if "measurements" not in record:
        return f"{name:32} {record['verdict']:9} {record['sentence']}"
    found = record["measurements"]
    engines = found["engines"]
    return (
        f"{name:32} {record['verdict']:9} {record['products']:9} {engines['mean']:9.2g} {engines['largest']:8.2g} "
        f"{engines['equal_continuations']:3d} of {engines['sequences']:<3d} {found['simulated']['mean']:9.2g}"
    )


SUMMARY_HEAD = f"{'':32} {'':9} {'products':9} {'mean':>9} {'largest':>8} {'continued':>10} {'quantization':>9}"


def _table(measurements: Mapping[str, Any]) -> list[str]:
    lines = [f"{'nats per token':38} {'mean':>9} {'largest':>9} {'next equal':>11} {'continued equal':>16}"]
    for key, label in ROWS.items():
        row = measurements[key]
        continued = (
            f"{row['equal_continuations']} of {row['sequences']}" if key in ("engines", "engines_on_base") else ""
        )
        lines.append(
            f"{label:38} {row['mean']:9.2g} {row['largest']:9.2g} {100 * row['equal_next']:9.1f} % {continued:>16}"
        )
    return [line.rstrip() for line in lines]


def _products(record: Mapping[str, Any]) -> str:
    settings, kernels = record["settings"], record["kernels"]
    counted = ", ".join(f"{number} × {kernel}" for kernel, number in kernels.items()) or "none quantized"
    where = f"{record['products']} products ({counted}), {settings['dtype']}"
    if "measurements" in record:
        engines = record["measurements"]["engines"]
        where += f", {engines['sequences']} texts, {engines['positions']:,} tokens"
    if record["products"] == "reference" and record["lacking"]:
        where += f"; {record['lacking']}, so its own products are untried: this shows format and loading"
    elif record["products"] == "reference":
        where += "; this shows format and loading, not vLLM's kernels"
    return where
