"""Kills, full disks and other processes: nothing finished is ever lost."""

import contextlib
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import pytest

from lm import checkpoint, errors
from lm.checkpoint import manifest, polling, read_locks

ROOT = Path(__file__).resolve().parents[2]

# Saves the steps named on its command line, telling how far it is.
PROGRAM = """
import sys
import jax.numpy as jnp
from lm import checkpoint, errors
workdir, keep, *steps = sys.argv[1:]
def state(step, size=1000):
  return {'params': {'w': jnp.full(size, step, jnp.float32)}}
def main():
  with checkpoint.Checkpointer(
    workdir, keep=int(keep), beat_seconds=0.1, stale_seconds=1.0
  ) as saver:
    print('ready', flush=True)
    for step in map(int, steps):
      saver.save(step, state(step), {'at': step})
      print('called', step, flush=True)
"""
RUN = """
try:
  main()
except errors.Failure as error:
  print('refused', error, flush=True)
  sys.exit(error.exit_code)
"""


def like(size=1000):
  return {'params': {'w': jax.ShapeDtypeStruct((size,), jnp.float32)}}


def state(step, size=1000):
  return {'params': {'w': jnp.full(size, step, jnp.float32)}}


@pytest.fixture
def one():
  return SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def start(tmp_path):
  """Starts a process that saves steps into `tmp_path / 'run'`."""
  started = []

  def launch(*steps, keep=3, fault='', program=PROGRAM + RUN):
    process = subprocess.Popen(
      [sys.executable, '-c', program, str(tmp_path / 'run'), str(keep)]
      + [str(step) for step in steps],
      cwd=ROOT,
      env={**os.environ, 'FAULT': fault},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield launch
  for process in started:
    process.kill()
    process.communicate()


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline, 'waited in vain'
    time.sleep(0.01)


def check(workdir, one, want):
  got, meta = checkpoint.restore(workdir, like(), one)
  assert meta == {'at': want}
  assert float(got['params']['w'][999]) == want


@pytest.mark.process
def test_killed_while_saving(tmp_path, start, one):
  workdir = tmp_path / 'run'
  process = start(1, 2, 3, fault='die_in_save@3')
  out, err = process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert 'called 3' in out
  assert err == ''
  assert checkpoint.steps(workdir) == [1, 2]
  assert manifest.leftovers(workdir) == ['tmp.save.00000003.1']
  check(workdir, one, 2)
  assert manifest.leftovers(workdir)  # a reader clears nothing away
  with checkpoint.Checkpointer(workdir) as saver:
    assert manifest.leftovers(workdir) == []
    restored = saver.restore(like(), one)
    assert restored is not None and restored[1] == {'at': 2}
    saver.save(3, state(3), {'at': 3})
  check(workdir, one, 3)


@pytest.mark.process
def test_killed_at_any_moment_of_a_save(tmp_path, start, one):
  workdir = tmp_path / 'run'
  process = start(1, 2, fault='slow_save@30')
  tmp = manifest.root(workdir) / 'tmp.save.00000001.1'
  wait_for((tmp / 'state' / '_METADATA').exists)  # orbax has finished
  assert checkpoint.steps(workdir) == []
  process.kill()
  process.wait()
  with pytest.raises(errors.Missing):
    checkpoint.restore(workdir, like(), one)
  with checkpoint.Checkpointer(workdir) as saver:
    assert saver.restore(like(), one) is None
    assert os.listdir(manifest.root(workdir)) == []


@pytest.mark.process
def test_killed_while_deleting(tmp_path, start, one):
  workdir = tmp_path / 'run'
  process = start(1, 2, 3, 4, keep=2, fault='die_in_delete@2')
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  # Step 2 has lost a file, and its name before that.
  assert checkpoint.steps(workdir)[-2:] == [3, 4]
  assert manifest.leftovers(workdir) == ['tmp.delete.00000002.1']
  check(workdir, one, 4)
  with checkpoint.Checkpointer(workdir):
    assert checkpoint.steps(workdir) == [3, 4]
    assert manifest.leftovers(workdir) == []


@pytest.mark.process
def test_a_program_that_ends_after_save_has_saved(tmp_path, start, one):
  process = start(1, fault='slow_save@0.5')
  out, err = process.communicate()
  assert (process.returncode, err) == (0, '')
  assert out.splitlines() == ['ready', 'called 1']
  check(tmp_path / 'run', one, 1)


@pytest.mark.process
def test_a_second_trainer_is_refused(tmp_path, start):
  process = start(1)
  with checkpoint.Checkpointer(tmp_path / 'run'):
    out, _ = process.communicate()
  assert process.returncode == 3
  assert f'locked by pid {os.getpid()} on ' in out
  assert checkpoint.steps(tmp_path / 'run') == []


@pytest.mark.process
def test_a_zombie_writes_nothing(tmp_path, start, one):
  workdir = tmp_path / 'run'
  zombie = start(1, 2, fault='stop_in_save@2')
  os.waitpid(zombie.pid, os.WUNTRACED)  # it has stopped itself
  assert checkpoint.steps(workdir) == [1]
  time.sleep(1.1)  # its heartbeat is stale now
  with checkpoint.Checkpointer(
    workdir, beat_seconds=0.1, stale_seconds=1.0
  ) as saver:
    saver.save(2, state(22), {'at': 22})
    saver.wait()
    zombie.send_signal(signal.SIGCONT)
    out, _ = zombie.communicate()
    saver.save(3, state(3), {'at': 3})
  assert zombie.returncode == 3
  assert f'pid {os.getpid()} on ' in out
  assert 'has taken over; this process writes nothing more' in out
  assert checkpoint.steps(workdir) == [1, 2, 3]
  assert checkpoint.read_meta(workdir, 2) == {'at': 22}
  assert manifest.leftovers(workdir) == []
  check(workdir, one, 3)


def replace_lease(workdir):
  """Does what a successor does first, and nothing of what it does next."""
  path = workdir / 'lease'
  (workdir / 'new').write_bytes(path.read_bytes())
  os.rename(workdir / 'new', path)


def test_a_replaced_writer_neither_commits_nor_saves_again(
  tmp_path, monkeypatch
):
  real = manifest.write

  def replaced(*args):
    replace_lease(tmp_path)
    return real(*args)

  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state(1), {})
    saver.wait()
    monkeypatch.setattr(manifest, 'write', replaced)
    saver.save(2, state(2), {})  # replaced while it is being written
    with pytest.raises(errors.Locked, match='has taken over'):
      saver.wait()
    monkeypatch.setattr(saver, '_run', lambda *_: pytest.fail('it writes'))
    with pytest.raises(errors.Locked, match='has taken over'):
      saver.save(3, state(3), {})
  assert checkpoint.steps(tmp_path) == [1]
  assert manifest.leftovers(tmp_path) == []


def test_a_step_that_vanishes_under_a_reader_is_skipped(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as saver:
    for step in (1, 2):
      saver.save(step, state(step), {'at': step})

  def use(step):
    if step == 2:
      shutil.rmtree(manifest.directory(tmp_path, 2))
    return checkpoint.verify(tmp_path, step)['step']

  assert manifest.newest(tmp_path, use) == 1


@pytest.mark.process
def test_a_reader_that_races_with_deletion_is_never_wrong(tmp_path, start):
  workdir = tmp_path / 'run'
  process = start(*range(1, 41), keep=1)
  wait_for(lambda: len(checkpoint.steps(workdir)) > 1)
  first = checkpoint.steps(workdir)[0]
  seen, gone = set(), 0
  with contextlib.suppress(errors.Gone), checkpoint.read_lock(workdir, first):
    while process.poll() is None:
      for step in checkpoint.steps(workdir):
        try:
          if step % 2:
            with checkpoint.read_lock(workdir, step):
              params = checkpoint.restore_params(workdir, step)
          else:  # without a lock it may vanish, but never be half there
            params = checkpoint.restore_params(workdir, step)
        except errors.Gone:
          gone += 1
          continue
        assert (params['w'] == step).all()
        seen.add(step)
      newest = checkpoint.steps(workdir)[-1]
      assert checkpoint.restore_params(workdir)['w'][0] >= newest
    assert checkpoint.verify(workdir, first)
  assert process.returncode == 0
  assert len(seen) > 3
  assert checkpoint.steps(workdir)[-2:] == [39, 40]


def test_locked_steps_stay_and_are_deleted_later(tmp_path):
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:

    def save(*steps):
      for step in steps:
        saver.save(step, state(step), {})
      saver.wait()

    save(1)
    with checkpoint.read_lock(tmp_path, 1):
      save(2, 3, 4)
      assert checkpoint.steps(tmp_path) == [1, 3, 4]
      assert read_locks.locked_steps(tmp_path) == {1}
    save(5)
    assert checkpoint.steps(tmp_path) == [4, 5]
    with (
      pytest.raises(errors.Gone, match='00000001: no such step: never saved'),
      checkpoint.read_lock(tmp_path, 1),
    ):
      pass
  with (
    pytest.raises(errors.Missing, match='no such work directory: check'),
    checkpoint.read_lock(tmp_path / 'typo', 1),
  ):
    pass


@pytest.mark.process
def test_read_locks_of_the_dead_and_old_ones_do_not_count(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state(1), {})
  code = (
    'import os, sys\nfrom lm import checkpoint\n'
    'with checkpoint.read_lock(sys.argv[1], 1):\n  os._exit(9)\n'
  )
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT)
  (left,) = tmp_path.glob('read_locks/0*')
  assert read_locks.locked_steps(tmp_path) == set()
  assert not left.exists()
  with checkpoint.read_lock(tmp_path, 1):
    (mine,) = tmp_path.glob('read_locks/0*')
    assert read_locks.locked_steps(tmp_path) == {1}
    then = time.time() - 4000
    os.utime(mine, (then, then))
    assert read_locks.locked_steps(tmp_path) == set()
  # A lock of another host, whose lock cannot be seen, counts while it is young.
  other = tmp_path / 'read_locks/00000001.1.1'
  other.write_text('elsewhere')
  assert read_locks.locked_steps(tmp_path) == {1}


def limited(free):
  usage = shutil.disk_usage('/')
  return lambda path: usage._replace(free=free)


def test_a_disk_that_is_too_small_is_refused_before(tmp_path, monkeypatch):
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state(1), {})
    monkeypatch.setattr(shutil, 'disk_usage', limited(5000))
    text = r'needs 1052656 bytes and 5000 are free: make room, or lower keep'
    with pytest.raises(errors.Storage, match=f'a checkpoint {text}') as caught:
      saver.preflight(like())
    assert caught.value.exit_code == 5
    with pytest.raises(errors.Storage, match=f'step 2 {text}'):
      saver.save(2, state(2), {})
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [1]
    saver.save(2, state(2), {})
  assert checkpoint.steps(tmp_path) == [1, 2]


FULL = """
import resource, shutil
size = 1 << 20
with checkpoint.Checkpointer(workdir) as saver:
  saver.save(1, state(1), {'at': 1})
  saver.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20,) * 2)
  try:
    saver.save(2, state(2, size), {'at': 2})
    saver.wait()
  except errors.Storage as error:
    print(error)
  saver.save(3, state(3), {'at': 3})
"""


@pytest.mark.process
def test_a_write_that_fails_is_an_error_of_this_save(tmp_path, start, one):
  process = start(program=PROGRAM + FULL)
  out, _ = process.communicate()
  assert process.returncode == 0
  (line,) = out.splitlines()
  assert 'step 2 not saved: File too large (needs 4194304 bytes, ' in line
  assert ' free); older steps are intact: make room' in line
  assert len(line) <= 200
  assert checkpoint.steps(tmp_path / 'run') == [1, 3]
  assert manifest.leftovers(tmp_path / 'run') == []
  check(tmp_path / 'run', one, 3)


@pytest.mark.process
def test_a_full_disk_is_an_error_of_this_save(tmp_path, monkeypatch, one):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)]
  try:
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
  except FileNotFoundError:
    mounted = False
  if not mounted:
    pytest.skip('cannot mount a small disk here')
  try:
    with checkpoint.Checkpointer(disk) as saver:
      saver.save(1, state(1), {'at': 1})
      saver.wait()
      monkeypatch.setattr(shutil, 'disk_usage', limited(1 << 40))
      saver.save(2, {'w': jnp.ones(1 << 20)}, {})
      with pytest.raises(
        errors.Storage, match='step 2 not saved: No space left on device'
      ):
        saver.wait()
      monkeypatch.undo()
      assert manifest.leftovers(disk) == []
      with pytest.raises(errors.Storage, match='step 2 needs'):
        saver.save(2, {'w': jnp.ones(1 << 20)}, {})
      saver.save(3, state(3), {'at': 3})
    check(disk, one, 3)
  finally:
    subprocess.run(['umount', str(disk)], check=True)


def test_a_disk_that_lies_is_an_error_of_this_save(tmp_path, monkeypatch):
  real = manifest.write

  def lie(place, *args):
    file = place / 'state/params.w/0'
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    return real(place, *args)

  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state(1), {})
    saver.wait()
    monkeypatch.setattr(manifest, 'write', lie)
    saver.save(2, state(2), {})
    with pytest.raises(
      errors.Storage, match=r'params.w/0: what was written at step 2 is not'
    ):
      saver.wait()
  assert checkpoint.steps(tmp_path) == [1]
  assert manifest.leftovers(tmp_path) == []


def test_what_fails_in_the_background_is_raised_once(tmp_path, monkeypatch):
  def broken(*args):
    raise TypeError('a bug')

  with checkpoint.Checkpointer(tmp_path) as saver:
    monkeypatch.setattr(manifest, 'write', broken)
    saver.save(1, state(1), {})
    with pytest.raises(TypeError, match='a bug'):
      saver.save(2, state(2), {})
    monkeypatch.undo()
    saver.save(2, state(2), {})
  assert checkpoint.steps(tmp_path) == [2]


def test_an_error_of_the_program_is_not_hidden(tmp_path, monkeypatch):
  def broken(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(manifest, 'write', broken)
  with (
    pytest.raises(KeyError) as caught,
    checkpoint.Checkpointer(tmp_path) as saver,
  ):
    saver.save(1, state(1), {})
    raise KeyError('the real cause')
  (note,) = caught.value.__notes__
  assert 'and the last save failed' in note
  assert 'step 1 not saved: [Errno 28] No space left' in note


@pytest.mark.slow
def test_storage_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setenv('FAULT', 'slow_save@2')
  with checkpoint.Checkpointer(tmp_path, deadline_seconds=0.1) as saver:
    saver.save(1, state(1), {})
    with pytest.raises(
      errors.Storage,
      match=r'saving step 1 has not finished in 0.1 s: storage does not answer',
    ):
      saver.wait()
    wait_for(lambda: checkpoint.steps(tmp_path) == [1])  # late, but whole


def test_storage_that_stalls_in_a_read_is_named(tmp_path, monkeypatch):
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state(1), {})
  monkeypatch.setattr(polling, 'STALLED_SECONDS', 0.5)
  monkeypatch.setenv('FAULT', 'slow_read@0.2')  # slow, and yet it goes on
  assert checkpoint.restore_params(tmp_path)['w'][0] == 1
  monkeypatch.setenv('FAULT', 'slow_read@2')
  with pytest.raises(
    errors.Storage,
    match=r'/00000001/state/\S+: nothing was read for 0.5 s: storage does not'
    ' answer; check it',
  ) as caught:
    checkpoint.restore_params(tmp_path)
  assert caught.value.exit_code == 5


def test_a_read_only_workdir_is_refused_before(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  text = 'cannot be written to: Not a directory: make it writable or use'
  with (
    pytest.raises(errors.Storage, match=text),
    checkpoint.Checkpointer(tmp_path / 'file' / 'run'),
  ):
    pass

  def refuse(*args):
    raise OSError(30, 'Read-only file system')

  # As root no mode is read only.
  monkeypatch.setattr(Path, 'write_bytes', refuse)
  with (
    pytest.raises(errors.Storage, match=r'cannot be .* Read-only file system'),
    checkpoint.Checkpointer(tmp_path / 'run'),
  ):
    pass


def test_steps_are_chosen_by_number_not_by_time(tmp_path, one):
  with checkpoint.Checkpointer(tmp_path) as saver:
    for step in (1, 2):
      saver.save(step, state(step), {'at': step})
  later = time.time() + 3e7
  for path in manifest.directory(tmp_path, 1).rglob('*'):
    os.utime(path, (later, later))
  os.utime(manifest.directory(tmp_path, 2), (0, 0))
  check(tmp_path, one, 2)
