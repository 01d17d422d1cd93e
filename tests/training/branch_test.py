"""A branch of a run: the numbers of a run that had its schedule all along."""

import json
import shutil
from typing import Any

import pytest

from lm import checkpoint, config, train
from lm.training import run_record
from tests import programs

WSD: dict[str, Any] = {
  'steps': 9,
  'optim__schedule': 'wsd',
  'optim__decay_fraction': 0.34,
}
OPTIM = {
  'fn': 'lm.optim.optimizers:make',
  'peak': 0.01,
  'warmup': 2,
  'schedule': 'constant',
}


def made(folder, **changes):
  """Makes a config of a run with a constant rate, and saves at 3, 6, 9."""
  settings = {
    'steps': 12,
    'save_every': 3,
    'keep': 9,
    'log_every': 4,
    'eval_every': 3,
  }
  own = {k: x for k, x in changes.items() if k.startswith('optim__')}
  plain = {k: x for k, x in changes.items() if k not in own}
  c = programs.on_eight(folder, **{**settings, **plain}).unlock()
  c.optim = OPTIM | {k.removeprefix('optim__'): x for k, x in own.items()}
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  return c.lock()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp('branches')
  programs.write_data(place)
  train.train(made(place), place / 'trunk')
  return place


def branch(folder, **changes):
  return made(
    folder,
    **{**WSD, 'branch_from': folder / 'trunk', 'branch_step': 6, **changes},
  )


@pytest.mark.parametrize('average', ['', 'tail'])
def test_a_branch_is_a_run_that_had_its_schedule_all_along(
  folder, tmp_path, average
):
  trunk, changes = folder / 'trunk', {'optim__tail': 2}
  if average:
    changes['optim__average'], trunk = average, tmp_path / 'trunk'
    train.train(made(folder, **changes), trunk)
  c = branch(folder, branch_from=trunk, **changes)
  train.train(made(folder, **WSD, **changes), tmp_path / 'whole')
  train.train(c, tmp_path / 'branch')
  assert checkpoint.steps(tmp_path / 'branch') == [6, 9]
  whole, own = (checkpoint.digest(tmp_path / x, 9) for x in ('whole', 'branch'))
  assert whole == own != checkpoint.digest(trunk, 9)
  # Sums that the trunk had not written yet are in the first line.
  lines = [programs.losses(tmp_path / x) for x in ('whole', 'branch')]
  assert lines[1] == [x for x in lines[0] if x[0] > 6] != []
  # Once it has begun it goes on without its trunk.
  shutil.move(trunk, tmp_path / 'away')
  try:
    programs.rewind(tmp_path / 'branch', tmp_path / 'again', 6)
    train.train(c, tmp_path / 'again')
  finally:
    shutil.move(tmp_path / 'away', trunk)
  assert checkpoint.digest(tmp_path / 'again', 9) == own


def test_a_branch_names_its_trunk_and_keeps_its_certificates(folder, tmp_path):
  one = {'files': {}, 'sources': {'train': {'files': {}}}}
  (folder / 'trunk' / 'contamination.json').write_text(json.dumps(one))
  try:
    train.train(branch(folder), tmp_path / 'branch')
  finally:
    (folder / 'trunk' / 'contamination.json').unlink()
  (start,) = run_record.read(tmp_path / 'branch')['starts']
  assert start['step'] == 6
  assert start['parent']['folder'] == str(folder / 'trunk')
  assert start['parent']['changes']['steps'] == [12, 9]
  kept = json.loads((tmp_path / 'branch' / 'contamination.json').read_text())
  assert kept['sources'] == {'train': {'files': {}}}


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    ({'optim__schedule': 'cosine'}, 'step 3 had the rate 0.01, and has 0.00'),
    ({'optim__decay_fraction': 0.6}, 'branch from step 5 or earlier'),
    ({'optim__peak': 0.02}, 'optim.peak'),
    ({'model__width': 64}, 'model.width.*branch from a run with this config'),
    ({'steps': 6}, 'steps: 6, and the branch begins at step 6: give more'),
    ({'branch_step': 7}, 'no such step.*there now: 3, 6, 9, 12'),
    ({'branch_step': None}, 'branch_step: say from which step of'),
    ({'branch_from': None}, 'branch_step: 6 without branch_from'),
    ({'init_from': 'runs/x'}, 'init_from: runs/x, but a branch has all from'),
    ({'optim__average': 'ema'}, 'branch from a run with this'),
  ],
  ids=str,
)
def test_what_cannot_branch_is_one_line_and_makes_no_folder(
  folder, tmp_path, changes, line
):
  with pytest.raises(Exception, match=line) as caught:
    train.train(branch(folder, **changes), tmp_path / 'branch')
  error = config.error_line(caught.value)
  assert error is not None and '\n' not in error[0]
  assert not (tmp_path / 'branch').exists()


def test_a_tail_that_has_begun_is_not_another_one(folder, tmp_path):
  tail = {'optim__average': 'tail'}
  train.train(made(folder, **tail, optim__tail=8), tmp_path / 'trunk')
  c = branch(folder, branch_from=tmp_path / 'trunk', **tail, optim__tail=2)
  with pytest.raises(config.ConfigError, match='the tail whose parameters'):
    train.train(c, tmp_path / 'branch')


def test_a_private_run_has_no_branches(folder, tmp_path):
  c = branch(folder).unlock()
  c.privacy = {'fn': 'lm.training.privacy:gaussian', 'noise': 1.0}
  with pytest.raises(config.ConfigError, match='would draw the same noise'):
    train.train(c.lock(), tmp_path / 'branch')
