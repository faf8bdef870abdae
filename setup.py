"""What pyproject.toml cannot say: the wheel carries a copy of this workspace's files for `plumbline init`."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
TEMPLATE = runpy.run_path(str(ROOT / "plumbline" / "workspace_template.py"))  # imports nothing of Plumbline


class BuildWithTemplate(build_py):
    """Copies the template of a workspace beside the package's modules."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # `plumbline init` reads the checkout itself
            return
        for source, target in self._template():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._template())]

    def _template(self) -> list[tuple[Path, Path]]:
        folder = Path(self.build_lib) / "plumbline" / TEMPLATE["FOLDER"]
        return [(ROOT / name, folder / name) for name in TEMPLATE["files_of"](ROOT)]


setup(cmdclass={"build_py": BuildWithTemplate})
