"""Settings of Sphinx: Markdown pages by MyST, and the reference of `lm`."""

from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = 'lm'
author = 'The lm authors'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
source_suffix = {'.md': 'myst-nb'}
exclude_patterns = ['_build', '**/.ipynb_checkpoints']
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # notebooks are executed by a test, not by the build
html_theme = 'furo'
html_title = 'lm'
html_static_path: list[str] = []
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Types of other libraries are not linked: the build asks no server.
nitpicky = False
