"""A result is computed again when its code has changed, and only then."""

import importlib
import sys
import textwrap

import pytest

from lm import config, evaluate, train
from lm.config import untrusted
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


@pytest.fixture
def run(data, folder, tmp_path, monkeypatch, one_device):
  """A run whose own config names an evaluator of a user's module."""
  del one_device
  monkeypatch.setenv(untrusted.VARIABLE, 'tests')
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'asked').mkdir()
  (tmp_path / 'asked' / 'one.txt').write_text('one')
  (folder / 'mine.py').write_text(TRUSTED)
  c = programs.make(data, steps=6, save_every=6).unlock()
  c.evals = {'mine': {'fn': 'mine:make', 'path': 'asked', 'power': 1}}
  train.train(c.lock(), tmp_path / 'run')
  return tmp_path


TRUSTED = '''
from pathlib import Path

import helpers


def make(*, context, path: str, power: int = 1):
  """Makes an evaluator that counts arrays and texts."""
  texts = len(''.join(x.read_text() for x in sorted(Path(path).glob('*'))))
  return lambda params: {'n': (helpers.count(params) + texts) ** power}
'''


@pytest.mark.slow
def test_a_trusted_evaluator_that_changed_evaluates_old_checkpoints_again(
  run, folder, capsys
):
  """By the program: its code, its arguments and its files are in the key."""
  with pytest.raises(config.ConfigError, match='add --trust=mine'):
    evaluate.main(['--workdir=run'])
  (run / 'c.py').write_text(
    "def get_config(power='1'):\n"
    "  spec = {'fn': 'mine:make', 'path': 'asked', 'power': int(power)}\n"
    "  return {'seed': 0, 'steps': 1, 'batch_size': 1, 'save_every': 1,\n"
    "          'evaluate': {'workdirs': (), 'steps': None},\n"
    "          'evals': {'mine': spec}}\n"
  )

  def values(*flags):
    forget()
    evaluate.main(['--workdir=run', '--trust=mine', '--trust=./asked/', *flags])
    stored = metrics_log.read(run / 'run' / 'evals.jsonl')
    return [x['metrics']['mine/n'] for x in stored]

  (first,) = values()
  assert values() == [first]
  (folder / 'helpers.py').write_text(HELPERS.replace('len(', '10 + len('))
  assert values() == [first, first + 10]
  (folder / 'mine.py').write_text(TRUSTED.replace('texts) **', '2 * texts) **'))
  assert values()[2:] == [first + 13]
  (run / 'asked' / 'two.txt').write_text('four')
  assert values()[3:] == [first + 21]
  assert values('--config=c.py:2')[4:] == [(first + 21) ** 2]
  assert len(values()) == 5  # the first are still the right ones
  capsys.readouterr()


def test_files_count_wherever_a_path_leads(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'folder').mkdir()
  for name in ('items.jsonl', 'folder/a.txt', 'folder/b.jsonl'):
    (tmp_path / name).write_text('old')
  for path, file in (
    ('items.jsonl', 'items.jsonl'),
    ('folder', 'folder/a.txt'),
    ('folder/', 'folder/b.jsonl'),
    ('folder/*.jsonl', 'folder/b.jsonl'),
    ('*.jsonl', 'items.jsonl'),
  ):
    spec = {'fn': 'mine:make', 'path': path}
    before = fingerprint.task(spec)
    assert fingerprint.task(spec) == before
    (tmp_path / file).write_text(f'new {path}')
    assert fingerprint.task(spec) != before, path
  # Elsewhere a word is a word, and a slash no reason to read the disk.
  word = {'fn': 'mine:make', 'unit': 'folder', 'join': '/'}
  before = fingerprint.task(word)
  (tmp_path / 'folder' / 'a.txt').write_text('newer')
  assert fingerprint.task(word) == before


def test_an_installed_package_counts_by_its_source_if_it_is_ones_own(
  folder, tmp_path, monkeypatch
):
  """Others count by their version: who works on his own changes none."""
  site = tmp_path / 'site-packages'
  for name in ('mine_too', 'theirs'):
    (site / name).mkdir(parents=True)
    (site / name / '__init__.py').write_text('')
    (site / name / 'inner.py').write_text('import theirs.inner\nX = 1\n')
  monkeypatch.syspath_prepend(site)
  spec = {'fn': 'mine_too.inner:make'}
  forget()
  before = fingerprint.modules(spec)
  assert before.keys() == {'mine_too', 'mine_too.inner', 'theirs'}
  (site / 'mine_too' / 'inner.py').write_text('import theirs.inner\nX = 2\n')
  forget()
  after = fingerprint.modules(spec)
  assert {k for k in after if after[k] != before[k]} == {'mine_too.inner'}
  (site / 'theirs' / 'inner.py').write_text('X = 2\n')
  forget()
  assert fingerprint.modules(spec) == after


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


def test_folders_without_init_count_inside_of_packages(folder):
  deep = folder / 'pack' / 'plain' / 'deep'
  deep.mkdir(parents=True)
  (folder / 'pack' / '__init__.py').write_text('')
  (deep / 'inner.py').write_text('X = 1')
  (folder / 'helpers.py').write_text('from pack.plain.deep import inner')
  found = fingerprint.modules({'fn': 'mine:make'})
  assert found.keys() == {'mine', 'helpers', 'pack', 'pack.plain.deep.inner'}


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
