"""Trainers that stood still and were replaced, and clocks that jump."""

import os
import signal
import time

import pytest

from lm import checkpoint, errors, train
from lm.checkpoint import lease, read_locks
from lm.reporting import metrics_log
from tests import programs

STEPS = 36
YEAR = 365 * 86400


def files(workdir):
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file()
  }


def replace_lease(workdir):
  """Does what a successor does first, and nothing of what it does next."""
  path = workdir / 'lease'
  (workdir / 'new').write_bytes(path.read_bytes())
  os.rename(workdir / 'new', path)


def test_a_zombie_program_writes_nothing_and_ends_with_3(data, start, tmp_path):
  workdir = tmp_path / 'run'
  arguments = programs.flags(data, workdir, data__seconds=0.05)
  process = start('train', arguments)
  process.wait_for(lambda: len(programs.losses(workdir)) >= 8)
  process.send(signal.SIGSTOP)
  os.waitpid(process.pid, os.WUNTRACED)
  # Stopped within a save, it removes what it has begun and nothing else.
  before = {k: v for k, v in files(workdir).items() if '/tmp.' not in k}
  replace_lease(workdir)
  process.send(signal.SIGCONT)
  assert 'has taken over; this process writes nothing more' in process.error(3)
  assert files(workdir) == before


def test_a_program_that_is_replaced_before_it_starts_writes_nothing(
  data, tmp_path, monkeypatch
):
  """Between taking the lease and the first step lie seconds of compiling."""
  workdir, real = tmp_path / 'run', checkpoint.Checkpointer.meta
  before = {}

  def replaced(self):
    found = real(self)
    replace_lease(workdir)
    before.update(files(workdir))
    return found

  monkeypatch.setattr(checkpoint.Checkpointer, 'meta', replaced)
  with pytest.raises(errors.Locked, match='has taken over'):
    train.train(programs.on_eight(data), workdir)
  assert files(workdir) == before and 'config.json' not in before


@pytest.mark.slow
@pytest.mark.parametrize('jump', [YEAR, -YEAR])
def test_a_clock_that_jumps_while_a_run_trains_harms_nothing(
  data, trained, tmp_path, monkeypatch, jump
):
  workdir, real, jumped = tmp_path / 'run', time.time, [0]
  monkeypatch.setattr(time, 'time', lambda: real() + jumped[0])
  append, locks = metrics_log.append, []

  def write(path, record, *check):
    append(path, record, *check)
    if record['step'] == 13:
      locks.append(checkpoint.read_lock(workdir, 6))
      locks[0].__enter__()
    if record['step'] == 14:
      jumped[0] = jump
      with pytest.raises(errors.Locked, match=r'heartbeat \d+ s ago'):
        lease.Lease(workdir, beat_seconds=0.01).__enter__()
      assert read_locks.locked_steps(workdir) == {6}

  # The heart beats as it does in longer runs.
  monkeypatch.setattr(lease, 'BEAT_SECONDS', 0.2)
  monkeypatch.setattr(metrics_log, 'append', write)
  train.train(programs.on_eight(data, keep=2), workdir)
  locks[0].__exit__(None, None, None)
  assert checkpoint.steps(workdir) == [6, 30, 36]
  assert checkpoint.digest(workdir, STEPS) == checkpoint.digest(trained, STEPS)
  assert programs.losses(workdir) == programs.losses(trained)
  records = metrics_log.read(workdir / 'metrics.jsonl')
  assert all(r['tokens_per_second'] > 0 for r in records)
  # The next trainer is let in, whatever the file times say.
  with lease.Lease(workdir) as held:
    assert held.token == 2
