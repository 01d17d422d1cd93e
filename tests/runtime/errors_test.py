import ast
import re
import tomllib

from lm import errors
from lm.reporting import writers
from tests import programs

ROOT = programs.ROOT


def test_what_is_missing_is_installed_from_the_checkout():
  assert errors.install('interop') == "pip install -e '.[interop]'"


def test_texts_name_extras_that_exist_and_no_package_of_the_index():
  extras = set()
  for folder in ('lm', 'tools', 'configs'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      text = path.read_text()
      assert not re.search(r'\blm\[[a-z,]+\]|install [\'"]?lm\b', text), path
      extras |= {
        ast.literal_eval(node.args[0])
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == 'errors.install'
        and isinstance(node.args[0], ast.Constant)
      }
  extras |= writers.KNOWN.keys()  # each has an extra of its name
  assert len(extras) > 5
  with (ROOT / 'pyproject.toml').open('rb') as file:
    project = tomllib.load(file)['project']
  assert not extras - project['optional-dependencies'].keys()


def test_a_long_text_keeps_place_cause_and_fix():
  place = '/' + 'a-folder-with-a-long-name/' * 8 + 'run/checkpoints'
  text = str(errors.Storage(f'{place}: step 2 not saved: disk full: make room'))
  assert text == (
    '.../a-folder-with-a-long-name/run/checkpoints: '
    'step 2 not saved: disk full: make room'
  )
  long = str(errors.Storage(f'x: {"cause " * 60}: make room'))
  assert len(long) <= 200 and '\n' not in long
  assert long.startswith('x: cause') and long.endswith('make room')
