"""Puts the files of a new project into the wheel, for `infalign init`: they stand in this folder.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
PLACE = Path("flows", "project")
LIST = HERE / PLACE / "template.txt"  # the files, a pattern a line


class WithTemplate(build_py):
    """Copies them as a wheel is built; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for pattern in LIST.read_text(encoding="utf-8").split():
            for path in sorted(HERE.glob(pattern)):
                target = Path(self.build_lib) / PLACE / "template" / path.relative_to(HERE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": WithTemplate})
