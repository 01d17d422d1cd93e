"""Kills after the first save, in deletions and beside evaluations."""

import random
import signal
import time

import pytest

from lm import checkpoint
from lm.checkpoint import manifest
from lm.reporting import metrics_log
from tests import programs

KILLS = 20
MANY = 200  # steps, more than twenty lives take
STEPS = 36


@pytest.mark.slow
def test_twenty_kills_after_a_save_leave_the_same_bits(data, start, tmp_path):
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  changes = {'steps': MANY, 'save_every': 2, 'keep': 3}
  reference = start('train', programs.flags(data, whole, **changes))
  assert reference.wait() == 0, reference.text()
  dice, begins = random.Random(11), []
  slow = programs.flags(data, workdir, **changes, data__seconds=0.05)
  for _ in range(KILLS):
    begin = max(checkpoint.steps(workdir), default=0)
    begins.append(begin)
    process = start('train', slow)
    # At least one step more is saved in every life, and then it may end
    # anywhere: between saves, in a save, in a deletion.
    process.wait_for(
      lambda n=begin: max(checkpoint.steps(workdir), default=0) > n
    )
    time.sleep(dice.uniform(0, 0.2))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.text()
    assert f'step {begin} of {MANY}' in process.text()
  assert len(set(begins)) == KILLS and begins == sorted(begins)
  quick = programs.flags(data, workdir, **changes, allow='data.seconds')
  last = start('train', quick)
  assert last.wait() == 0, last.text()
  checkpoint.verify(workdir, MANY)
  assert checkpoint.digest(workdir, MANY) == checkpoint.digest(whole, MANY)
  assert programs.losses(workdir) == programs.losses(whole)
  assert manifest.leftovers(workdir) == []


@pytest.mark.slow
def test_kills_in_deletions_leave_the_same_bits(data, alone, start, tmp_path):
  workdir = tmp_path / 'run'
  arguments = programs.flags(data, workdir, keep=2)
  for step in (6, 12, 18):
    process = start('train', arguments, fault=f'die_in_delete@{step}')
    assert process.wait() == -signal.SIGKILL, process.text()
    # It has lost its name before it lost its first file.
    (left,) = manifest.leftovers(workdir)
    assert left.startswith(f'tmp.delete.{step:08d}.')
    assert step not in checkpoint.steps(workdir)
    for kept in checkpoint.steps(workdir):
      checkpoint.verify(workdir, kept)
  process = start('train', arguments)
  assert process.wait() == 0, process.text()
  assert checkpoint.steps(workdir) == [30, 36]
  assert manifest.leftovers(workdir) == []
  assert checkpoint.digest(workdir, STEPS) == checkpoint.digest(alone, STEPS)


@pytest.mark.slow
def test_an_evaluation_beside_deletions_is_never_wrong(
  data, alone, start, tmp_path
):
  workdir = tmp_path / 'run'
  evaluation = ['--workdir=' + str(workdir), '--watch', f'--data={data}']
  trainer = start(
    'train',
    programs.flags(data, workdir, keep=2, save_every=1, data__seconds=0.05),
    fault='slow_delete@0.005',
  )
  trainer.wait_for(lambda: checkpoint.steps(workdir))
  beside = start('evaluate', evaluation)
  assert trainer.wait() == 0, trainer.text()
  assert beside.wait() == 0, beside.text()
  assert 'Traceback' not in beside.text()
  # The same steps of an undisturbed run, evaluated when nobody deletes.
  whole = tmp_path / 'whole'
  process = start('train', programs.flags(data, whole, keep=100, save_every=1))
  assert process.wait() == 0, process.text()
  evaluation[0] = f'--workdir={whole}'
  assert start('evaluate', evaluation).wait() == 0

  def results(folder):
    return {
      (line['step'], line['checkpoint'], line['evaluator']): line['metrics']
      for line in metrics_log.read(folder / 'evals.jsonl')
    }

  found, want = results(workdir), results(whole)
  assert {step for step, _, _ in found} >= {35, STEPS}
  assert found.items() <= want.items()
  said = [x for x in beside.text().splitlines() if 'left out' in x]
  assert all('no such step' in x or 'deleted' in x for x in said), said
  assert checkpoint.steps(workdir) == [35, STEPS]
