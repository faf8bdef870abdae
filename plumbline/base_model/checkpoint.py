"""The base model as one value: where it comes from, its digest, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.artifact import read_json
from plumbline.base_model.chat_template import TEMPLATE_FILE, read_template
from plumbline.base_model.folder import base_model_digest, model_folder, quantization_of, require_full_precision
from plumbline.base_model.params import Device, ModelParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.base_model.streamed import StreamedModel


@dataclass(frozen=True)
class BaseCheckpoint:
    """The base model as `model:` in params.yaml names it.

    Nothing is downloaded, read or imported until it is needed. The value can be pickled for a worker process, which may
    run on a machine that has not downloaded the model, or has it in another folder.
    """

    params: ModelParams
    root: Path
    """The workspace, absolute; a relative `params.name` is resolved against it."""

    @classmethod
    def of(cls, params: ModelParams, root: Path = Path()) -> BaseCheckpoint:
        """The checkpoint that `model:` in the params.yaml of `root` names."""
        return cls(params, root.absolute())

    def __getstate__(self) -> dict[str, Any]:
        """The fields, without the folder, which is this machine's."""
        return {name: value for name, value in self.__dict__.items() if name != "folder"}

    @cached_property
    def folder(self) -> Path:
        """The model's folder; a hub commit is downloaded on first use.

        Raises as `model_folder` and `require_full_precision`.
        """
        folder = model_folder(self.params, self.root)
        require_full_precision(folder, self.params.dequantize)
        return folder

    @property
    def name(self) -> str:
        """The name that artifacts record: that in params.yaml, or the last part of an absolute path."""
        path = Path(self.params.name)
        return path.name if path.is_absolute() else self.params.name

    @property
    def revision(self) -> str | None:
        """The commit of the hub repository."""
        return self.params.revision

    @property
    def device(self) -> Device:
        """The device in params.yaml: "auto", "cpu" or "cuda"."""
        return self.params.device

    @property
    def dequantize(self) -> bool:
        """Whether the weights are dequantized while they are loaded."""
        return self.params.dequantize

    @property
    def trust_remote_code(self) -> bool:
        """Whether the model's own code may run."""
        return self.params.trust_remote_code

    def origin(self) -> dict[str, Any]:
        """What artifacts record of the model beside its digest: name, revision, and from what it was dequantized."""
        origin = {"name": self.name, "revision": self.revision}
        quantization = quantization_of(self.folder) if self.dequantize else None
        return origin if quantization is None else {**origin, "dequantized_from": quantization["quant_method"]}

    def digest(self) -> str:
        """SHA-256 (hex) of every file that decides an activation. Raises as `base_model_digest`."""
        return base_model_digest(self.folder)

    def load(self) -> PreTrainedModel:
        """The model, loaded anew. Raises as `load_model`."""
        from plumbline.base_model.load import load_model

        return load_model(self.folder, self.device, self.trust_remote_code, self.dequantize)

    def loaded(self) -> PreTrainedModel:
        """The model, shared by all callers in this process: leave weights, mode and hooks as they were."""
        from plumbline.base_model.load import loaded_model

        return loaded_model(self.folder, self.device, self.trust_remote_code, self.dequantize)

    def streamed(self, device: Device | None = None) -> StreamedModel:
        """The model with its weights left on disk. Raises as `StreamedModel`.

        Args:
            device: where weights are loaded to; None: the device in params.yaml.
        """
        from plumbline.base_model.streamed import StreamedModel

        return StreamedModel(self.folder, device or self.device, self.trust_remote_code, self.dequantize)

    def skeleton(self) -> PreTrainedModel:
        """The model's modules on the meta device, from its configuration alone. Raises as `architecture.skeleton`."""
        from plumbline.base_model.architecture import skeleton

        return skeleton(self.folder, self.trust_remote_code)

    def vocabulary(self) -> int | None:
        """Number of tokens that the model has an embedding for, by config.json; None if it does not say.

        Raises as `read_config`.
        """
        if "model_type" not in read_json(self.folder / "config.json"):
            return None
        from plumbline.base_model.architecture import read_config

        config = read_config(self.folder, self.trust_remote_code).get_text_config()
        return getattr(config, "vocab_size", None)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer, with the chat template that params.yaml names.

        Raises as `load_tokenizer` and `read_template`.
        """
        from plumbline.base_model.load import load_tokenizer

        tokenizer, template = load_tokenizer(self.folder, self.trust_remote_code), read_template(self.params, self.root)
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    def write_template(self, out: Path) -> None:
        """Write the chat template that params.yaml names into the folder of a model, in place of the model's own.

        Raises as `read_template`.
        """
        template = read_template(self.params, self.root)
        if template is not None:
            (out / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="")
