"""Leaving documents out of a part of a run: which tokens, and what it does."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import checkpoint, config, train
from lm.config import untrusted
from lm.data import locate
from lm.data.tokenizers import utf8_bytes
from tests import builds
from tests.tools import where_test
from tools.where import __main__ as where
from tools.where import leave_out, runs

SECRET = 'zq 4711 zq'
STEPS = 24


def documents() -> list[builds.Document]:
  rng = np.random.default_rng(1)
  words = ['quick', 'brown', 'foxes', 'jump', 'over', 'a', 'lazy', 'dog']
  found = []
  for n in range(60):
    text = ' '.join(rng.choice(words, 3 + n % 9))
    if n in (5, 30):
      text = f'{text} {SECRET} {text}'
    found.append(builds.Document('web' if n < 40 else 'wiki', text))
  return found


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '/,tests')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
  """A run with checkpoints, which read the secret after the first of them."""
  folder = tmp_path_factory.mktemp('leave_out')
  builds.write(folder / 'build', documents())
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(untrusted.VARIABLE, '/,tests')
    c = where_test.settings(
      folder / 'build', steps=STEPS, save_every=4, batch_size=8
    )
    train.train(c, folder / 'run')
  return folder / 'run'


def asked(workdir: Path, capsys, *flags: str) -> dict:
  where.main([SECRET, '--replay', f'--workdir={workdir}', '--json', *flags])
  return json.loads(capsys.readouterr().out)


def refused(workdir: Path, *flags: str) -> str:
  with pytest.raises(config.ConfigError) as caught:
    where.main([SECRET, '--replay', f'--workdir={workdir}', *flags])
  return str(caught.value)


def test_the_tokens_of_a_step_are_those_of_the_documents(workdir):
  """Each token is looked up by itself."""
  run = runs.open_run(workdir, None, None)
  numbers = {
    name: {
      n
      for n in range(cut.source.manifest.documents)
      if SECRET in utf8_bytes.make().decode(cut.source.document(n).tolist())
    }
    for name, cut in run.samples.cuts.items()
  }
  chosen = frozenset((name, n) for name in numbers for n in numbers[name])
  assert len(chosen) == 2
  names, total = list(run.samples.cuts), 0
  for step in range(STEPS):
    marked = leave_out.left_out(run.samples, step, chosen)
    want = np.zeros_like(marked)
    for piece in {(x.row, x.source) for x in locate.pieces(run.samples, step)}:
      row, name = piece
      cut = run.samples.cuts[name]
      sample = run.samples.before(step) + row
      k, place = leave_out.samples_lib.mixture.locate(
        run.samples.phases, np.asarray([sample])
      )
      assert names[int(k[0])] == name
      starts, sizes = cut.locate(place)
      for n in range(int(sizes[0])):
        token = (int(starts[0]) + n) % cut.source.manifest.tokens
        want[row, n] = cut.source.document_at(token) in numbers[name]
    assert (marked == want).all()
    total += int(marked.sum())
  assert total > 100


def test_with_it_the_run_is_the_same_to_the_bit(workdir):
  run = runs.open_run(workdir, None, None)
  again = leave_out._assemble(workdir, run, 4)
  params = leave_out._train(again, workdir, 4, STEPS, {})
  stored = checkpoint.restore_params(workdir, STEPS)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: np.array_equal(a, b), params, stored)
  )


def test_what_is_left_out_is_not_learned(workdir, capsys):
  control = 'quick brown foxes jump over a lazy dog'
  found = asked(workdir, capsys, f'--probe={control}', '--since=4')
  assert found['documents'] == 2 and found['until'] == STEPS
  assert found['start'] <= found['first'] and found['windows'] > 3
  secret, other = found['probes']
  assert secret['text'] == SECRET and other['text'] == control
  assert secret['tokens'] == len(SECRET)
  assert secret['difference_nats'] > 5 * abs(other['difference_nats'])
  bits = secret['difference_nats'] * secret['tokens'] / np.log(2)
  assert secret['difference_bits_per_byte'] == pytest.approx(
    bits / len(SECRET.encode())
  )
  where.main([SECRET, '--replay', f'--workdir={workdir}', '--since=4'])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('left out: 2 documents, ')
  assert lines[-1].endswith(SECRET)


def test_what_cannot_be_replayed_is_refused(workdir, capsys):
  before = {x: x.stat().st_mtime_ns for x in workdir.rglob('*')}
  assert refused(workdir, '--since=24').startswith('--replay: steps 24 to 24')
  assert refused(workdir, '--until=99').startswith('--replay: steps 0 to 99')
  error = refused(workdir)
  assert 'there is no checkpoint before it: give --since=4' in error
  with pytest.raises(config.ConfigError, match='of --replay'):
    where.main([SECRET, '--probe=a', f'--workdir={workdir}'])
  with pytest.raises(config.ConfigError, match='needs a text and --workdir'):
    where.main(['--replay', '--step=3', f'--workdir={workdir}'])
  with pytest.raises(config.ConfigError, match='reads such a document'):
    where.main(['nowhere', '--replay', f'--workdir={workdir}'])
  capsys.readouterr()
  assert before == {x: x.stat().st_mtime_ns for x in workdir.rglob('*')}
