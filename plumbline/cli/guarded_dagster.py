"""`python -m plumbline.cli.guarded_dagster dev`: `dagster dev`, with a guard around its webserver.

`dagster dev` starts the webserver and the daemon as processes. Only the command of the first is changed: it is this
module with `webserver`, which wraps Dagster's ASGI app and otherwise is `dagster-webserver`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

HOSTS = "PLUMBLINE_UI_HOSTS"
"""Environment variable: further allowed names of the UI, separated by commas."""
DEV = "DAGSTER_IS_DEV_CLI"
"""Environment variable that `dagster dev` sets for the processes that it starts."""
UNGUARDED = (
    "the UI of `dagster dev` answers every web site that a browser on this machine has open, and executes what it "
    "sends: stop it and start `plumbline ui`, which refuses that and is otherwise the same"
)
MODULE = "plumbline.cli.guarded_dagster"
ROLES = ("dev", "webserver")


def dev() -> None:
    """`dagster dev`."""
    dagster_dev: Any = import_module("dagster._cli.dev")
    start = dagster_dev.open_ipc_subprocess

    def start_guarded(command: Sequence[str], **options: Any) -> Any:
        return start(guarded_command(command), **options)

    dagster_dev.open_ipc_subprocess = start_guarded
    warnings.filterwarnings("ignore", message="Function `dev_command` is superseded")  # nobody can act on it
    dagster_dev.dev_command()


def guarded_command(command: Sequence[str]) -> list[str]:
    """The command of a process of `dagster dev`, with the webserver's replaced.

    Raises:
        RuntimeError: it is neither the webserver nor the daemon, so an unguarded server might start.
    """
    python, flag, module, *arguments = command
    if (flag, module) == ("-m", "dagster_webserver"):
        return [python, "-m", MODULE, "webserver", *arguments]
    if (flag, module) == ("-m", "dagster._daemon"):
        return list(command)
    raise RuntimeError(
        f"this version of Dagster starts {command[:4]}, which the guard of the UI does not know; install the version "
        "in constraints.txt"
    )


def webserver() -> None:
    """`dagster-webserver`."""
    import uvicorn

    from plumbline.cli.guard import guarded
    from plumbline.cli.pages import WithPages
    from plumbline.workspace import workspace_root

    cli: Any = import_module("dagster_webserver.cli")
    hosts = [host for host in os.environ.get(HOSTS, "").split(",") if host]

    def run(app: Any, **options: Any) -> None:
        print(f"Dagster: http://{options['host']}:{options['port']}", flush=True)
        uvicorn.run(guarded(WithPages(app, workspace_root() / "data"), hosts), **options)

    assert cli.uvicorn is uvicorn, "this version of Dagster serves in another way; install that of constraints.txt"
    cli.uvicorn = SimpleNamespace(run=run)
    cli.main()


def warn_if_unguarded() -> None:
    """Warn if `dagster dev` was started by hand; it shows the log of the process that loads the definitions."""
    if os.environ.get(DEV) and HOSTS not in os.environ:
        logging.getLogger("plumbline").warning(UNGUARDED)


if __name__ == "__main__":
    role = sys.argv.pop(1)
    assert role in ROLES, f"expected one of {ROLES}, found {role!r}"
    dev() if role == "dev" else webserver()
