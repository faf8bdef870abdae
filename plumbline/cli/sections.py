"""The list of commands in `plumbline --help`: by purpose, one uncut line each."""

from __future__ import annotations

import click

SECTIONS: dict[str, dict[str, str]] = {
    "Start": {
        "init": "a workspace; --model and --corpus: for your own",
        "run": "bring everything up to date; --plan: say what it takes",
        "status": "what is out of date, and why",
        "ui": "Dagster in a browser, and its sensors",
        "mlflow": "MLflow in a browser",
    },
    "Choose": {
        "strategies": "the ways to choose a calibration set",
        "schemes": "the quantization schemes",
        "plan": "what a scheme would quantize of a model",
        "study": "does the choice matter? with confidence intervals",
    },
    "Look and judge": {
        "show": "the samples of a set, or two side by side",
        "judge": "how far any checkpoint is from its base model",
        "tasks": "whether a model is worse at tasks of lm-eval",
        "serve-check": "vLLM's answers beside transformers'",
        "engine": "install vLLM for serve-check, in a place of its own",
    },
    "Audit": {
        "audit": "from a model back to its documents",
        "affected": "from a document to every model it touched",
        "diff": "what differs between two models' chains",
        "log": "the history of champions",
        "sign": "sign a model and its provenance",
        "verify": "hash every artifact again",
    },
    "Decide and hand on": {
        "promote": "make a model the champion",
        "rollback": "make the previous champion the champion again",
        "export": "a set for another quantizer",
        "update-statistics": "statistics of a changed set, by its changes alone",
        "push": "bring to DVC's remote what models rest on",
        "gc": "free DVC's cache of what nothing needs",
        "reconcile": "tell Dagster what `dvc checkout` or `pull` brought",
    },
}
"""Title -> command -> what it is for, in at most WIDTH characters."""
OF_STAGES = ("materialize", "declare", "code-versions", "base-model", "named-outputs")
"""Commands that dvc.yaml calls; people rarely do."""
WIDTH = 56


class Sections(click.Group):
    """A group whose help lists its commands by purpose."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list; a command that no section names comes last, so that none is missing."""
        listed = {name for commands in SECTIONS.values() for name in commands} | set(OF_STAGES)
        others = {name: command.get_short_help_str(WIDTH) for name, command in self.commands.items()}
        others = {name: text for name, text in others.items() if name not in listed}
        for title, commands in {**SECTIONS, "Others": others}.items():
            if rows := [(name, text) for name, text in commands.items() if name in self.commands]:
                formatter.write(f"\n{title}\n")
                formatter.write("".join(f"  {name:19}{text}\n" for name, text in rows))
        formatter.write(f"\nCalled by dvc.yaml: {', '.join(OF_STAGES)}\n")
        formatter.write("plumbline COMMAND --help: its options, with an example\n")
