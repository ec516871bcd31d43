"""What pyproject.toml cannot say: notebooks and recorded data lie beside the package, ship in it.

`workbench.home.shipped` finds them in either place.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithNotebooks(build_py):
    """Copies them to ``workbench/shipped`` of a wheel; an editable install leaves them in place."""

    def run(self):
        """Build as always, then copy."""
        super().run()
        if not self.editable_mode:
            for folder, pattern in (("notebooks", "*.ipynb"), ("data/recorded", "**/*")):
                for source in filter(Path.is_file, Path(folder).glob(pattern)):
                    target = Path(self.build_lib, "workbench", "shipped", source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithNotebooks})
