"""One writer per work directory, whoever dies, stops or sets the clock."""

import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from lm import errors
from lm.checkpoint import lease

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys, time
from lm.checkpoint import lease
beat = float(sys.argv[2])
with lease.Lease(sys.argv[1], beat_seconds=beat, stale_seconds=0.5) as held:
  print('held', held.token, flush=True)
  sys.stdin.readline()
  try:
    held.check()
    print('still mine', flush=True)
  except lease.errors.Locked as e:
    print(e, flush=True)
"""


@pytest.fixture
def start(tmp_path):
  """Starts a process that holds the lease of `tmp_path`."""
  started = []

  def one(beat=0.05):
    process = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(tmp_path), str(beat)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline().startswith('held')
    return process

  yield one
  for process in started:
    process.kill()
    process.communicate()


def quick(path):
  return lease.Lease(path, beat_seconds=0.05, stale_seconds=0.5)


@pytest.mark.process
def test_a_second_writer_is_refused_by_name(tmp_path, start):
  first = start()
  with (
    pytest.raises(
      errors.Locked,
      match=f'locked by pid {first.pid} on .* since [0-9]+ s, '
      'heartbeat 0 s ago: stop it or use another workdir',
    ) as caught,
    lease.Lease(tmp_path),
  ):
    pass
  assert caught.value.exit_code == 3
  assert len(str(caught.value)) <= 200
  found = lease.holder(tmp_path)
  assert found is not None
  assert found['pid'] == first.pid
  assert 0 <= found['age_seconds'] < 60


@pytest.mark.process
def test_a_killed_holder_frees_it_at_once(tmp_path, start):
  first = start()
  first.kill()
  first.wait()
  assert lease.holder(tmp_path) is None
  # These limits would make it wait for a minute if the kernel had not told.
  with lease.Lease(tmp_path, beat_seconds=10, stale_seconds=60) as held:
    assert held.token == 2


def test_leaving_frees_it_and_tokens_increase(tmp_path):
  assert lease.holder(tmp_path) is None
  for token in (1, 2, 3):
    with lease.Lease(tmp_path) as held:
      assert held.token == token
      held.check()
    assert lease.holder(tmp_path) is None
  assert sorted(os.listdir(tmp_path)) == ['lease', 'lease.lock']


@pytest.mark.process
def test_a_zombie_is_replaced_and_fenced(tmp_path, start):
  first = start()
  first.send_signal(signal.SIGSTOP)
  os.waitpid(first.pid, os.WUNTRACED)  # it has stopped, with its heartbeat
  time.sleep(0.6)  # stale now
  with quick(tmp_path) as held:
    assert held.token == 2
    first.send_signal(signal.SIGCONT)
    said = first.communicate('go\n')[0]
    assert f'pid {os.getpid()} on' in said
    assert 'has taken over; this process writes nothing more' in said
    # Its end does not free what is ours now.
    held.check()
    found = lease.holder(tmp_path)
    assert found is not None and found['pid'] == os.getpid()


@pytest.mark.process
def test_a_jumped_clock_takes_no_lease_away(tmp_path, start, monkeypatch):
  start(beat=1.0)  # time enough for a beat, however slow the machine
  real = time.time
  for year in (365 * 86400, -365 * 86400):
    monkeypatch.setattr(time, 'time', lambda year=year: real() + year)
    with pytest.raises(errors.Locked, match=r'heartbeat [0-9]+ s ago'):
      quick(tmp_path).__enter__()


def other_host(tmp_path, age):
  """Writes the lease of a holder whose lock this host cannot see."""
  content = {'token': 7, 'pid': 1, 'host': 'elsewhere', 'beat_seconds': 0.05}
  path = tmp_path / 'lease'
  path.write_bytes(lease._encode(content))
  then = time.time() - age
  os.utime(path, (then, then))


def test_another_host_is_judged_by_its_heartbeat(tmp_path):
  other_host(tmp_path, age=30)
  with pytest.raises(errors.Locked, match=r'pid 1 on elsewhere since .* 30 s'):
    lease.Lease(tmp_path).__enter__()
  assert lease.holder(tmp_path) is not None
  other_host(tmp_path, age=90)
  assert lease.holder(tmp_path) is None
  with lease.Lease(tmp_path) as held:
    assert held.token == 8


def test_a_removed_lease_stops_its_holder(tmp_path):
  with lease.Lease(tmp_path) as held:
    (tmp_path / 'lease').unlink()
    with pytest.raises(errors.Locked, match='the lease was removed while'):
      held.check()


@pytest.mark.parametrize('text', ['', '{', '[]', '{"token": "x"}', '\0' * 512])
def test_a_broken_lease_file_is_replaced(tmp_path, text):
  (tmp_path / 'lease').write_text(text)
  assert lease.holder(tmp_path) is None
  with quick(tmp_path):
    content = json.loads((tmp_path / 'lease').read_text())
    assert content['pid'] == os.getpid()


def test_an_unreadable_lease_that_is_locked_has_a_living_owner(tmp_path):
  with lease.Lease(tmp_path) as held:
    path = tmp_path / 'lease'
    path.write_bytes(b'?' + path.read_bytes()[1:])
    with pytest.raises(
      errors.Locked, match=r'locked by a process whose lease cannot be read, h'
    ):
      quick(tmp_path).__enter__()
    assert lease.holder(tmp_path) is not None
    held.check()
  with quick(tmp_path) as after:
    assert after.token == 2


@pytest.mark.parametrize('loss', ['lease', 'lease.lock', 'words', 'rewound'])
def test_a_token_never_comes_again(tmp_path, loss):
  path = tmp_path / 'lease'
  with lease.Lease(tmp_path):
    first = path.read_bytes()
  with lease.Lease(tmp_path) as held:
    assert held.token == 2
  if loss == 'words':
    path.write_bytes(b'?' * 512)
  elif loss == 'rewound':
    path.write_bytes(first)
  else:
    (tmp_path / loss).unlink()
  with quick(tmp_path) as held:
    assert held.token == 3


def test_tokens_in_names_that_writers_have_left_count(tmp_path):
  for name in ('tmp.save.00000130.7', 'damaged.00000110.5', 'tmp.probe.900'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  with lease.Lease(tmp_path) as held:
    assert held.token == 8


@pytest.mark.parametrize('word', ['1e300', '1e18', 'Infinity', 'NaN'])
def test_words_of_a_lease_lengthen_no_wait(tmp_path, monkeypatch, word):
  content = {'token': 7, 'pid': 1, 'host': 'elsewhere', 'started': float(word)}
  content |= {'beat_seconds': float(word), 'stale_seconds': float(word)}
  path = tmp_path / 'lease'
  path.write_bytes(lease._encode(content))
  os.utime(path, (1e9, 1e9))
  waited, real = [0.0], time.monotonic()
  monkeypatch.setattr(time, 'monotonic', lambda: real + waited[0])
  monkeypatch.setattr(
    time, 'sleep', lambda seconds: waited.append(waited.pop() + seconds)
  )
  with lease.Lease(tmp_path) as held:
    assert held.token in (1, 8)
  assert waited[0] < 26


@pytest.mark.parametrize('name', ['lease', 'lease.lock'])
def test_pipes_and_links_are_not_waited_for(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with contextlib.suppress(OSError), quick(tmp_path) as held:
    held.check()
  (tmp_path / name).unlink()
  (tmp_path / 'mine').write_text('mine')
  (tmp_path / name).symlink_to(tmp_path / 'mine')
  with contextlib.suppress(OSError), quick(tmp_path) as held:
    held.check()
  assert (tmp_path / 'mine').read_text() == 'mine'


@pytest.mark.process
def test_a_forked_child_does_not_keep_it(tmp_path):
  """A data worker must not hold the lease of a trainer that is gone."""
  code = (
    'import os, sys, time\n'
    'from lm.checkpoint import lease\n'
    'lease.Lease(sys.argv[1], beat_seconds=300).__enter__()\n'
    'if os.fork() == 0:\n'
    '  print(os.getpid(), flush=True)\n'
    '  time.sleep(60)\n'
    'os._exit(0)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  child = int(process.stdout.readline())
  try:
    process.wait()
    with lease.Lease(tmp_path, beat_seconds=300) as held:
      assert held.token == 2
  finally:
    os.kill(child, signal.SIGKILL)
    process.stdout.close()
