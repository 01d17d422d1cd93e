"""A result is computed again when its code has changed, and only then."""

import importlib
import sys
import textwrap

import pytest

from lm import config, evaluate
from lm.evals import fingerprint
from lm.reporting import metrics_log
from tests import programs

MINE = '''
"""An evaluator of a user."""

import helpers


def make(*, context):
  """Makes it."""
  return lambda params: {'n': helpers.count(params)}
'''
HELPERS = """
import jax


def count(params):
  # Arrays, not parameters.
  return len(jax.tree.leaves(params))
"""


def forget():
  """Forgets what a process keeps of modules, as if another one began."""
  for name in ('mine', 'helpers', 'pack', 'pack.inner'):
    sys.modules.pop(name, None)
  importlib.invalidate_caches()
  for function in vars(fingerprint).values():
    if hasattr(function, 'cache_clear'):
      function.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder of a user's own modules, from which Python imports."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(sys, 'dont_write_bytecode', True)
  (tmp_path / 'mine.py').write_text(MINE)
  (tmp_path / 'helpers.py').write_text(HELPERS)
  forget()
  yield tmp_path
  forget()


@pytest.mark.slow
def test_a_changed_evaluator_evaluates_again_and_a_docstring_does_not(
  trained, folder, tmp_path
):
  """Otherwise a report shows results that no program computes any more."""
  workdir = programs.rewind(trained, tmp_path / 'run', 36)
  evals = {'mine': {'fn': 'mine:make'}}

  def lines():
    forget()
    evaluate.evaluate(workdir, evals=evals, steps='last')
    stored = metrics_log.read(workdir / 'evals.jsonl')
    return [x['metrics'] for x in stored if x['evaluator'] == 'mine']

  ((name, count),) = (first := lines())[0].items()
  assert name == 'mine/n' and count > 1
  # Words, comments and layout.
  text = MINE.replace('Makes it.', 'Makes the evaluator.')
  text = text.replace('{', '{ ')
  (folder / 'mine.py').write_text(f'# Mine.\n{text}')
  (folder / 'helpers.py').write_text(HELPERS.replace('Arrays', 'Leaves'))
  assert lines() == first
  # What the evaluator's module imports.
  (folder / 'helpers.py').write_text(HELPERS.replace('len', '-len'))
  assert lines() == [*first, {'mine/n': -count}]
  # The evaluator itself.
  (folder / 'mine.py').write_text(MINE.replace("'n'", "'m'"))
  assert lines() == [*first, {'mine/n': -count}, {'mine/m': -count}]


def test_all_modules_behind_an_evaluator_count(folder):
  (folder / 'pack').mkdir()
  (folder / 'pack' / '__init__.py').write_text('')
  (folder / 'pack' / 'inner.py').write_text('import numpy as np')
  (folder / 'helpers.py').write_text(
    textwrap.dedent("""
      from typing import TYPE_CHECKING

      if TYPE_CHECKING:
        from lm import train

      def lazy():
        from pack import inner
        from pack.inner import np
    """)
  )
  found = fingerprint.modules({'fn': 'mine:make'})
  assert found.keys() == {'mine', 'helpers', 'pack', 'pack.inner', 'numpy'}
  assert found['numpy'].startswith('numpy==')
  # Specs inside a spec count, too.
  spec = {'fn': 'pack.inner:make', 'task': {'fn': 'mine:read'}}
  assert fingerprint.modules(spec) == found


@pytest.mark.parametrize(
  ('fn', 'own', 'others'),
  [
    ('lm.evals.likelihood:make', 'lm.loss', 'lm.evals.scoring'),
    ('lm.evals.choice:choice', 'lm.evals.scoring', 'lm.evals.generation'),
    ('lm.evals.generation:make', 'lm.inference.generate', 'lm.evals.safety'),
  ],
)
def test_evaluators_depend_on_what_they_use(fn, own, others):
  """So that a change of training or of a report evaluates nothing again."""
  found = fingerprint.modules({'fn': fn})
  assert {fn.partition(':')[0], own, 'lm.types', 'jax'} <= found.keys()
  assert not {others, 'lm.train', 'lm.evaluate', 'lm.checkpoint'} & found.keys()
  assert not any(x.startswith('lm.evals.reports') for x in found)


def test_an_evaluator_without_source_is_refused(folder):
  (folder / 'mine.py').unlink()
  with pytest.raises(config.ConfigError) as caught:
    fingerprint.code({'fn': 'mine:make'})
  assert str(caught.value) == (
    'fn mine:make: there is no source to hash: put the function in a file'
  )
