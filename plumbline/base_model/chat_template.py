"""`model: {chat_template: FILE}`: a chat template that replaces the tokenizer's own."""

from __future__ import annotations

from pathlib import Path

from plumbline.base_model.params import ModelParams

TEMPLATE_FILE = "chat_template.jinja"
"""Where a Hugging Face folder has its chat template; it counts more than the one in tokenizer_config.json."""


def template_path(params: ModelParams, root: Path) -> Path | None:
    """The file that params.yaml names; None: the tokenizer's own template is used."""
    return None if params.chat_template is None else root / params.chat_template


def read_template(params: ModelParams, root: Path) -> str | None:
    """The chat template that params.yaml names; None: the tokenizer's own is used.

    Raises:
        ValueError: there is no such file, or it is empty or not UTF-8.
    """
    path = template_path(params, root)
    if path is None:
        return None
    place = f"model.chat_template in params.yaml: {params.chat_template}"
    if not path.is_file():
        raise ValueError(f"{place} is no file; give a file with a Jinja template, relative to the workspace")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise ValueError(f"{place} is empty; put the template into it, or take the line out")
    return text


def require_template(params: ModelParams, root: Path) -> None:
    """Refuse a chat template that transformers cannot compile.

    Raises:
        ValueError: as `read_template`; or the text is no Jinja, with its line.
    """
    text = read_template(params, root)
    if text is None:
        return
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template  # knows the tags of chat templates

    try:
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"model.chat_template in params.yaml: {params.chat_template}, line {error.lineno}: not Jinja: "
            f"{error.message}; correct that line"
        ) from error
