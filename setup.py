"""What pyproject.toml cannot say: a wheel carries the starter generator, which here lies under ``starter/``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStarter(build_py):
    """Puts ``starter/`` into the package, where ``histoloom sample starter`` looks for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("starter", Path(self.build_lib) / "histoloom" / "starter", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithStarter})
