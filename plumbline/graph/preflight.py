"""What can be known before the first step: all problems at once, instead of one per hour of work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from plumbline.artifact import read_json
from plumbline.collector import collector_paused
from plumbline.graph.declared import named_inputs, undeclared
from plumbline.params import Params, load_params
from plumbline.versioning.pipeline import resolved
from plumbline.versioning.writable import unwritable

TRACKED = ("evaluation", "calibration_report", "deployed_model", "study")
"""Assets that log in MLflow."""


class NotReady(ValueError):
    """Steps would fail; the message has a line per problem."""


def require_ready(root: Path, stages: Collection[str]) -> None:
    """Refuse to start these stages if one of them cannot succeed.

    Raises:
        NotReady: lists every problem.
        ValueError: params.yaml or dvc.yaml is invalid.
    """
    found = list(dict.fromkeys(problems(root, stages)))
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise NotReady(
            f"{count} found before the first step; nothing was run:\n" + "\n".join(f"- {line}" for line in found)
        )


def require_writable(root: Path) -> None:
    """Refuse to start anything where a run cannot write.

    Raises:
        NotReady: names the folder.
    """
    for problem in unwritable(root):
        raise NotReady(problem)


def problems(root: Path, stages: Collection[str]) -> Iterator[str]:
    """What would make one of these stages fail, as far as params.yaml and the workspace tell."""
    params, assets = load_params(root), {name.split("@")[0] for name in stages}
    yield from unwritable(root)
    broken = list(_base_model(params, root))
    yield from broken
    yield from _execution(params, root, stages)
    if "raw_corpus" in assets:
        yield from _named(root, "raw_corpus", params)
    if "tokenized_samples" in assets and not broken:
        yield from _tokenization(params, root)
    if "calibration_choice" in assets:
        yield from _choices(
            params, [name.partition("@")[2] for name in stages if name.startswith("calibration_choice@")]
        )
    if "calibration_set" in assets and not assets & {"raw_corpus", "tokenized_samples"}:
        yield from _pool(
            params, root, [name.partition("@")[2] for name in stages if name.startswith("calibration_set@")]
        )
    if "quantized_model" in assets and not broken:
        yield from _schemes(params, root, stages)
    if "evaluation" in assets and params.evaluation.items:
        yield from _named(root, "evaluation", params)
    yield from services(params, root, assets)


def services(params: Params, root: Path, assets: Collection[str]) -> Iterator[str]:
    """What is wrong with the stores that these assets read and write: the inbox, DVC's remote, MLflow."""
    from plumbline.s3 import SCHEME, bucket_problem
    from plumbline.versioning.config import remote_conflict
    from plumbline.versioning.remote import DvcRemote, default_remote

    inbox, storage = params.corpus.inbox, params.storage.remote
    if "raw_corpus" in assets and inbox.startswith(SCHEME) and (problem := bucket_problem(inbox)):
        yield f"corpus.inbox: {problem}"
    if storage and (problem := remote_conflict(root, storage)):
        yield problem
    elif storage and (problem := (default_remote(root) or DvcRemote("", storage, {})).problem()):
        yield f"storage.remote: {problem}"
    if set(assets) & set(TRACKED):
        from plumbline.tracking.readiness import store_problem

        if problem := store_problem(root):
            yield problem


def _base_model(params: Params, root: Path) -> Iterator[str]:
    from plumbline.base_model.folder import COMMIT, local_folder, model_folder, quantization_of, require_weights
    from plumbline.base_model.weight_files import weight_files

    folder = local_folder(params.model, root)
    try:
        if folder is not None:
            require_weights(folder)
            quantization_of(folder)  # refuses a damaged config.json
            weight_files(folder)  # and damaged files
        elif not COMMIT.fullmatch(params.model.revision or "") or (root / params.model.name.split("/")[0]).is_dir():
            model_folder(params.model, root)  # raises: no such folder, or no commit
    except (ValueError, OSError) as error:
        yield f"model: {error}"
    if params.model.device == "cuda":
        from plumbline.base_model.device import torch_device

        try:
            torch_device("cuda")
        except ValueError as error:
            yield str(error)


def _execution(params: Params, root: Path, stages: Collection[str]) -> Iterator[str]:
    """Why workers cannot compute what these stages share out."""
    from plumbline.execution.machines import cluster_problems
    from plumbline.execution.probe import problem

    counts = Counter(name.split("@")[0] for name in stages)
    if not any(_needs_workers(params, asset, count) for asset, count in counts.items()):
        return
    if said := problem(params.execution):
        yield said
        return
    (folder := root / ".plumbline").mkdir(exist_ok=True)
    yield from cluster_problems(params.execution, folder)


def _needs_workers(params: Params, asset: str, count: int) -> bool:
    """Whether so many stages of an asset are computed by workers, or share out their work themselves."""
    from plumbline.execution.share_out import shares_out
    from plumbline.graph.shared_steps import is_shared

    by_itself = asset == "study" or (asset == "activation_stats" and params.statistics.shards > 1)
    return is_shared(asset, count, params.execution) or (by_itself and shares_out(params.execution))


def _named(root: Path, stage: str, params: Params) -> Iterator[str]:
    """What params.yaml names and is absent, or is not listed in dvc.yaml."""
    named = named_inputs(params)[stage]
    for parameter, path in named.items():
        if not (root / path).exists():
            yield f"{parameter}: there is no {path}; correct the path in params.yaml"
    stages = [entry for name, entry in resolved(root).items() if name.split("@")[0] == stage]
    present = {key: path for key, path in named.items() if (root / path).exists()} if stages else {}
    yield from undeclared(root, stage, [path for entry in stages for path in entry.deps], present)


def _tokenization(params: Params, root: Path) -> Iterator[str]:
    from plumbline.base_model.chat_template import require_template
    from plumbline.base_model.context import context_length
    from plumbline.base_model.folder import local_folder, tokenizer_files
    from plumbline.raw_corpus.peek import first_chat

    folder = local_folder(params.model, root)
    if folder is None or not (folder / "config.json").is_file():
        return  # on the hub, or reported
    try:
        params.tokenize.within(context_length(folder))
    except ValueError as error:
        yield str(error)
    try:
        require_template(params.model, root)
    except ValueError as error:
        yield str(error)
    else:
        yield from _named(root, "base_model", params)
    broken, own = list(_broken_json(folder, tokenizer_files(folder))), params.model.chat_template
    yield from broken
    if not tokenizer_files(folder):
        yield f"model: {folder.name} has no tokenizer (tokenizer.json, tokenizer.model or vocab.*); copy its own there"
    elif not broken and own is None and not _has_template(folder) and (chat := first_chat(params.corpus, root)):
        yield (
            f"{chat} holds chats, and the tokenizer of {params.model.name} has no chat template: take a base model "
            "that has one (its instruction-tuned variant), name the template that is served "
            "(model: {chat_template: FILE}), or remove the source from params.yaml"
        )


def _broken_json(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """What is wrong with the JSON files of a tokenizer, which transformers would report without their name."""
    for name in names:
        if name.endswith(".json"):
            try:
                content = read_json(folder / name)
            except ValueError as error:  # UnicodeDecodeError is one
                yield f"model: {folder.name}/{name}: {error}; fetch it again"
                continue
            if not isinstance(content, dict):
                yield f"model: {folder.name}/{name}: expected an object, found {type(content).__name__}; fetch it again"


def _has_template(folder: Path) -> bool:
    if any(
        path.stat().st_size for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja"))
    ):
        return True
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    return bool(isinstance(config, dict) and config.get("chat_template")) or (folder / "chat_template.json").is_file()


def _schemes(params: Params, root: Path, stages: Collection[str]) -> Iterator[str]:
    """What is wrong for this model with a scheme of a model that will be made, from the base model's config.json."""
    from plumbline.base_model.folder import local_folder

    with collector_paused():
        from plumbline.base_model.checkpoint import BaseCheckpoint
        from plumbline.quantized_model.suits import suited

    folder = local_folder(params.model, root)
    if (
        folder is None
        or not (folder / "config.json").is_file()
        or "model_type" not in read_json(folder / "config.json")
    ):
        return  # on the hub, or reported
    try:
        model = BaseCheckpoint.of(params.model, root).skeleton()
    except (ValueError, OSError) as error:
        yield f"model: {error}"
        return
    pairs = params.pairs()
    made = (name.partition("@")[2] for name in stages if name.startswith("quantized_model@"))
    for name in dict.fromkeys(pairs[pair][1] for pair in made if pair in pairs):
        try:
            suited(model, params.schemes[name])
        except ValueError as error:
            yield f"schemes.{name}: {error}"


def _choices(params: Params, names: list[str]) -> Iterator[str]:
    from plumbline.calibration_choice.choice import resolve

    for name in names:
        try:
            resolve(name, params.calibrations[name].model_dump())
        except ValueError as error:
            yield str(error)


def _pool(params: Params, root: Path, names: list[str]) -> Iterator[str]:
    """Choices that ask for more samples than the pool of the current samples has."""
    accounting = root / "data/tokenized_samples/accounting.json"
    if not accounting.is_file():
        return
    size = read_json(accounting)["by_split"]["pool"]["samples"]
    for name in names:
        choice = params.calibrations[name]
        if choice.n > size and not choice.allow_fewer:
            yield (
                f"params.yaml, calibrations: {name}: asked for n = {choice.n} samples, the pool has {size}; lower n to "
                f"{size}, add documents, or set `allow_fewer: true`"
            )
