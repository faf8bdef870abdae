"""`plumbline judge`: any quantized checkpoint against its base model. It needs no workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from plumbline.base_model.checkpoint import BaseCheckpoint

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="FOLDER...", type=PATH)
@click.option("--base", required=True, metavar="MODEL", help="The base model: a folder, or a hub id with --revision.")
@click.option("--revision", metavar="COMMIT", help="Commit of the base model on the hub.")
@click.option("--texts", multiple=True, required=True, type=PATH, metavar="PATH", help="File or folder (repeatable).")
@click.option(
    "--against", type=PATH, metavar="FOLDER", help="The checkpoint to compare with; default: the first FOLDER."
)
@click.option("--tokens", default=16384, show_default=True, help="Tokens per domain; 0: all.")
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a sample; default: 2048.")
@click.option("--windows", default=1, show_default=True, help="Windows of a long document; 0: all.")
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens in memory at a time.")
@click.option(
    "--reference-logits", type=PATH, metavar="FILE", help="Keep the base model's answers, or read them there."
)
@click.option("--page", type=PATH, metavar="FILE", help="Write an HTML page.")
@click.option("--out", type=PATH, metavar="DIR", help="Write judgement.json and documents.parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dequantize", is_flag=True, help="The base model is quantized: take its dequantized weights.")
@click.option("--trust-remote-code", is_flag=True, help="Run the models' own code.")
def judge(
    checkpoints: tuple[Path, ...],
    base: str,
    revision: str | None,
    texts: tuple[Path, ...],
    against: Path | None,
    tokens: int,
    max_length: int | None,
    windows: int,
    batch_tokens: int,
    reference_logits: Path | None,
    page: Path | None,
    out: Path | None,
    as_json: bool,
    device: str,
    dequantize: bool,
    trust_remote_code: bool,
) -> None:
    """Say how far quantized checkpoints are from their base model, and which of them is closer.

    FOLDER is a checkpoint that transformers reads (of llm-compressor, GPTQModel, AutoRound, Plumbline, ...) or a .gguf
    file.
    TEXTS are .txt, .md, .jsonl, .jsonl.gz and .parquet, plain or chats. No workspace is needed.

    \b
    Example: plumbline judge Llama-8B-W4A16 --base meta-llama/Llama-3.1-8B --revision 0e9e... --texts chats.jsonl
             plumbline judge mine theirs --base base --texts texts/ --page judgement.html
    """
    from plumbline.judgement.judge import JudgeOptions, judge_checkpoints

    options = JudgeOptions(
        max_length=max_length,
        tokens_per_domain=tokens or None,
        windows_per_document=windows or None,
        batch_tokens=batch_tokens,
        reference_logits=reference_logits,
    )
    try:
        model = _base(base, revision, device=device, dequantize=dequantize, trust_remote_code=trust_remote_code)
        judgement = judge_checkpoints(model, checkpoints, texts, against, options)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        judgement.write(out)
    if page is not None:
        from plumbline.judgement.page import render_page

        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render_page(judgement.content), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(judgement.content, indent=1, ensure_ascii=False))
    else:
        _show(judgement.content)


def _base(name: str, revision: str | None, **settings: Any) -> BaseCheckpoint:
    """The base model in a folder here, or on the hub.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it is no folder, and no commit pins it on the hub; or it is quantized, and `dequantize` is not set.
    """
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.folder import BUNDLED, COMMIT, model_folder, quantization_of
    from plumbline.base_model.params import ModelParams

    if not Path(name).is_dir() and name != BUNDLED.name and (revision is None or not COMMIT.fullmatch(revision)):
        raise ValueError(
            f"--base: no folder {name!r}. A hub id needs --revision with the 40 hex digits of its commit, as a branch "
            f"may move; they are listed at https://huggingface.co/{name}/commits"
        )
    params = ModelParams.model_validate({"name": name, "revision": revision, **settings})
    if not params.dequantize and (quantization := quantization_of(model_folder(params, Path.cwd()))):
        raise ValueError(
            f"--base: the weights of {name} are quantized ({quantization.get('quant_method')}); give the model in full "
            "precision, or --dequantize to compare with the dequantized weights"
        )
    return BaseCheckpoint.of(params, Path.cwd())


def _show(content: dict[str, Any]) -> None:
    """The table, a row per checkpoint, and the sentences."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    base, texts = content["base_model"], content["texts"]
    table = Table(
        title=f"Against {base['name']}, on {texts['documents']} documents, {texts['tokens']} tokens",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("checkpoint", overflow="fold")
    for name in ("KL", "back", "ppl.", "top-1", "lost", "won", "layer", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in content["models"]:
        last = model["layers"][-1]["relative_error"] if model["layers"] else None
        table.add_row(
            model["name"],
            f"{model['kl_mean']:.5f}",
            f"{model['reverse_kl_mean']:.5f}",
            f"{model['perplexity_quantized']:.3f}",
            f"{100 * model['top1_agreement']:.1f} %",
            f"{100 * model['correct_to_incorrect']:.1f} %",
            f"{100 * model['incorrect_to_correct']:.1f} %",
            "" if last is None else f"{100 * last:.1f} %",
            f"{model['weights_bytes'] / 1e6:.1f}",
        )
    table.caption = (
        "KL: divergence from the base model, nats per token; back: the other way; ppl.: perplexity (base model "
        f"{content['models'][0]['perplexity_base']:.3f}); top-1: same next token; lost, won: right token no longer, or "
        "newly, the most probable; layer: relative error of the last layer's output"
    )
    table.caption_justify = "left"
    console = Console(highlight=False)
    console.print(table)
    lines = Table.grid(padding=(0, 1))
    for sentence in content["sentences"]:
        lines.add_row("•", sentence)
    if texts["rejected"]:
        counts = ", ".join(f"{count} {reason}" for reason, count in texts["rejected"].items())
        first = f" (first: {texts['first_rejected']})" if texts["first_rejected"] else ""
        lines.add_row("!", f"rows left out: {counts}{first}", style=None)
    if texts["refused_chats"]:
        reason = next(iter(texts["refused_chats"]))
        lines.add_row("!", f"the chat template refused {sum(texts['refused_chats'].values())} chats: {reason}")
    console.print(lines, markup=False)


COMMANDS = (judge,)
