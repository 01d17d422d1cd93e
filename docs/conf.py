"""Settings of Sphinx: Markdown pages by MyST, and the reference of `lm`."""

from pathlib import Path
import shutil
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tools.docs import reference

project = 'lm'
author = 'The lm authors'
extensions = ['myst_nb', 'sphinx.ext.autodoc']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
exclude_patterns = ['_build', '**/.ipynb_checkpoints']
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # notebooks are executed by a test, not by the build
html_theme = 'furo'
html_title = 'lm'
html_static_path: list[str] = []
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_inherit_docstrings = False  # flax's are in a markup of their own
# Types of other libraries are not linked: the build asks no server.
nitpicky = False


def docstring(app, what, name, thing, options, lines) -> None:
  """Turns a docstring of ours into what autodoc expects."""
  del app, what, name, thing, options
  lines[:] = reference.rst(lines)


def skip(app, what, name, thing, skipped, options) -> bool | None:
  """Leaves out fields of NamedTuples: their class describes them."""
  del app, what, name, skipped, options
  if str(getattr(thing, '__doc__', '')).startswith('Alias for field number'):
    return True
  return None


def setup(app) -> None:
  """Makes the pages that are no files of docs/ before Sphinx looks for them."""
  reference.write(HERE / 'api')
  shutil.rmtree(HERE / 'notebooks', ignore_errors=True)
  (HERE / 'notebooks').mkdir()
  for path in (HERE.parent / 'experiments' / 'notebooks').glob('*.ipynb'):
    shutil.copy(path, HERE / 'notebooks')
  app.connect('autodoc-process-docstring', docstring)
  app.connect('autodoc-skip-member', skip)
