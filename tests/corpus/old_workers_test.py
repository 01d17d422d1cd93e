"""A worker that lives from one build to the next gives no old results.

A failure means that a cluster mixes, without a word, what two versions of a
rule give.
"""

import json
from pathlib import Path
import sys

import pyarrow as pa
import pytest

from lm import errors
from lm.corpus import engines, maps, parts, stages
from lm.runtime import code_state
from tests.corpus import build_test

RULE = 'def short(most):\n  return lambda x: len(x.text) < most or None\n'
QUALITY = {
  'fn': 'lm.corpus.quality:make',
  'rules': {'short': {'fn': 'old_rules:short', 'most': 10}},
}
STAGE = (
  'from lm.corpus import stages\n'
  'def make():\n'
  "  drop = stages.each(lambda x: x._replace(reason='mine'))\n"
  "  return stages.Stage('mine', 1, {}, map=drop)\n"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Makes `run(spec)`, which does a task and gives the reasons."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend('.')
  maps.forget_stages()
  rows = [stages.Document('a b'), stages.Document('c d e f g h i j k l m n')]
  with parts.Writer(tmp_path / 'x.parquet', stages.DOCUMENTS) as out:
    out.add(stages.batch(pa.array(['line 1', 'line 2']), rows))

  def run(spec: maps.Spec) -> dict[str, int]:
    task = {
      'input': 'x.parquet',
      'part': 1,
      'stages': [spec],
      'edit': None,
      'output': parts.name(spec.identity),
    }
    return maps.run(json.loads(json.dumps(task)))['reasons']

  yield run
  maps.forget_stages()
  for name in ('old_rules', 'old_stage'):
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
  'name, code, spec',
  (
    ('old_rules', RULE, QUALITY),
    ('old_stage', STAGE, {'fn': 'old_stage:make'}),
  ),
)
def test_an_old_module_is_refused(run, name, code, spec):
  Path(f'{name}.py').write_text(code)
  assert sum(run(maps.identified(spec)).values()) == 2
  old = sys.modules.pop(name)
  Path(f'{name}.py').write_text(f'# Changed.\n{code}')
  maps.forget_stages()
  new = maps.identified(spec)  # as a new program finds it
  assert run(new)
  sys.modules[name] = old  # as a worker has it that has lived on
  maps.forget_stages()
  Path(parts.name(new.identity)).rename('before')
  with pytest.raises(errors.Failure, match='start the workers anew') as e:
    run(new)
  assert '\n' not in str(e.value)


def test_a_file_of_a_stage_that_has_changed_is_read_again(run):
  spec = {'fn': f'{build_test.__name__}:marked', 'file': 'word'}
  found = []
  for word in ('a', 'none'):
    Path('word').write_text(word)
    maps.forget_stages()
    found.append(maps.identified(spec))
  for word, new in zip(('a', 'none'), found, strict=True):
    Path('word').write_text(word)
    # The stage stays from the build before.
    assert run(new) == ({'marked': 1, '': 1} if word == 'a' else {'': 2})


def test_a_worker_with_other_code_of_lm_is_refused():
  task = pa.RecordBatch.from_pydict({'n': [0], 'task': ['{}']})
  given = ('json:dumps', '.', 'another code', iter([task]))
  (found,) = engines._run_tasks(*given)
  kind, text = json.loads(found.column('error')[0].as_py())
  assert kind == 'Failure' and 'other code of lm' in text and len(text) < 200
  given = ('json:dumps', '.', code_state.package_digest(), iter([task]))
  (found,) = engines._run_tasks(*given)
  assert found.column('error')[0].as_py() == ''
