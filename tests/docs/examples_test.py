"""The examples of docs/extending.md work as they stand there.

A failure means that a knob, a mixer or a rule is no more added in this way.
"""

from pathlib import Path
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from lm import config
from lm.corpus import stages
from tests.laws import laws_test

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'extending.md'


def example(name: str) -> str:
  """Reads the block of code behind a mark."""
  text = PAGE.read_text(encoding='utf-8')
  match = re.search(
    rf'<!-- example: {name} -->\n```\w+\n(.*?)^```', text, re.DOTALL | re.M
  )
  assert match, name
  return match[1]


@pytest.mark.slow
@pytest.mark.process
def test_the_knob_of_extending_is_one_patch(tmp_path):
  for folder in ('configs', 'lm'):
    shutil.copytree(
      ROOT / folder,
      tmp_path / folder,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  # Line numbers of the page may be older than the code.
  done = subprocess.run(
    ['patch', '-p1', '--no-backup-if-mismatch'],
    cwd=tmp_path,
    input=example('knob'),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
  code = (
    'import jax, jax.numpy as jnp\n'
    'from lm import config, types\n'
    'def hidden(*changes):\n'
    "  c = config.load('configs/gpt/tiny.py', [\n"
    "    ('model.width', '16'), ('model.depth', '1'), *changes])\n"
    '  model = config.build(c.model, vocab=8)\n'
    '  ids = jnp.ones((1, 4), jnp.int32)\n'
    '  at = jnp.arange(4)[None]\n'
    '  batch = types.Batch(ids, ids, ids * 1.0, at, ids)\n'
    '  params = model.init(0, batch)\n'
    '  params = jax.tree.map(lambda x: x + 0.1, params)\n'
    '  return model.apply(params, batch).hidden\n'
    "key = 'model.blocks.main.mlp.limit'\n"
    'one, same, other = (\n'
    "  hidden(), hidden((key, '1e9')), hidden((key, '1e-3')))\n"
    'assert jnp.array_equal(one, same) and not jnp.array_equal(one, other)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env={'PYTHONPATH': str(tmp_path), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_the_rule_of_extending_drops_documents(tmp_path, monkeypatch):
  (tmp_path / 'loud.py').write_text(example('rule'))
  monkeypatch.syspath_prepend(str(tmp_path))
  quality = {'fn': 'lm.corpus.quality:make', 'rules': {}}
  exec(example('rule line'), {'quality': quality})
  stage = config.build(quality)
  sys.modules.pop('loud', None)
  given = [stages.Document(x) for x in ('Buy! Now!', 'Bread is sold here.')]
  assert stage.map is not None
  found = stage.map(stages.batch(pa.array(['', '']), given))
  loud, calm = stages.documents(found)
  assert (loud.reason, loud.value) == ('quality.exclamations', 1.0)
  assert not calm.reason


@pytest.fixture
def average(tmp_path, monkeypatch):
  """Puts the mixer of the page and its config where they can be imported."""
  (tmp_path / 'average.py').write_text(example('mixer'))
  (tmp_path / 'mine.py').write_text(example('mixer config'))
  monkeypatch.syspath_prepend(str(tmp_path))
  c = config.load(f'{tmp_path}/mine.py', [])
  spec = config.plain(c.model) | {**laws_test.TINY, 'dropout': 0.0}
  monkeypatch.setitem(laws_test.MODELS, 'average', laws_test.Family(spec))
  yield 'average'
  sys.modules.pop('average', None)


@pytest.mark.slow
def test_the_mixer_of_extending_keeps_the_laws(average):
  for law in (
    laws_test.test_a_position_sees_nothing_to_its_right,
    laws_test.test_a_packed_document_reads_as_if_alone,
    laws_test.test_what_stands_in_padding_does_not_matter,
    laws_test.test_a_model_tells_the_arithmetic_of_a_token,
  ):
    law(average)
  for scan in (False, True):
    laws_test.test_prefill_and_decoding_equal_one_pass(average, scan)
