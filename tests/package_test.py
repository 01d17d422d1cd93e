"""The package shows its modules to editors, and importing it costs nothing."""

import ast
import pkgutil
import subprocess
import sys

import pytest

import lm
from tests import programs


def test_all_modules_are_listed_where_an_editor_looks():
  modules = {module.name for module in pkgutil.iter_modules(lm.__path__)}
  modules.discard('configs')  # data that a wheel carries
  assert set(lm.__all__) == set(dir(lm)) == modules
  source = ast.parse((programs.ROOT / 'lm' / '__init__.py').read_text())
  (guarded,) = (node for node in source.body if isinstance(node, ast.If))
  (names,) = (x.names for x in guarded.body if isinstance(x, ast.ImportFrom))
  assert [x.name for x in names] == lm.__all__ == sorted(lm.__all__)


@pytest.mark.process
def test_a_module_is_imported_when_it_is_named():
  code = (
    'import sys, lm\n'
    'loaded = {x.partition(".")[0] for x in sys.modules}\n'
    'assert not loaded & {"jax", "numpy", "ml_collections"}, loaded\n'
    'assert callable(lm.config.load) and "lm.config" in sys.modules\n'
    'assert "jax" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )
  assert done.returncode == 0, done.stderr
  with pytest.raises(AttributeError, match="lm has no attribute 'trian'"):
    lm.__getattr__('trian')
