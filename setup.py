"""Puts configs/ into the wheel, as data of `lm`; the rest: pyproject.toml."""

from pathlib import Path
import shutil

import setuptools
from setuptools.command import build_py


class BuildWithConfigs(build_py.build_py):
  """Copies configs/ to lm/configs, so that a wheel has them in another folder.

  They are data and no package of their own: `configs` is a name that another
  project may have.
  """

  def run(self) -> None:
    """Builds the package, and adds the configs unless it is editable."""
    super().run()
    if not self.editable_mode:
      here = Path(__file__).parent
      shutil.copytree(
        here / 'configs',
        Path(self.build_lib) / 'lm' / 'configs',
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns('__pycache__'),
      )


setuptools.setup(cmdclass={'build_py': BuildWithConfigs})
