"""The watchdog ends what hangs, and nothing else."""

import contextlib
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from lm import config, train
from lm.runtime import process_group, stragglers, watchdog
from tests import programs

# Ten short works make a usual time. The last one stands still.
STANDS = """
import pathlib, signal, sys, time
from lm.runtime import process_group, watchdog
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
with watchdog.Watchdog(
  pathlib.Path(sys.argv[1]), process_group.alone(),
  factor=float(sys.argv[2]), first_seconds=float(sys.argv[3]),
  least_seconds=float(sys.argv[5]),
) as watch:
  for step in range(10):
    watch.begin('a step', step, sys.argv[4] or None)
    time.sleep(0.001)
  watch.begin('a step', 10, sys.argv[4] or None)
  print('ready', flush=True)
  {stands}
"""
SLEEPS = 'time.sleep(1.5)'
# Waits until it was stopped and goes on, and then for two looks.
WAITS = 'signal.sigwait([signal.SIGCONT]); time.sleep(1.5)'


@pytest.fixture
def started(tmp_path):
  """Starts a program that stands still, and waits until it does."""
  processes = contextlib.ExitStack()

  def start(stands, factor=20.0, first=100.0, kind='steps', least=0.5):
    code = STANDS.format(stands=stands)
    words = [str(tmp_path), str(factor), str(first), kind, str(least)]
    process = subprocess.Popen(
      [sys.executable, '-c', code, *words],
      cwd=programs.ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.enter_context(process)
    processes.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == 'ready\n'
    return process

  with processes:
    yield start


def end(process) -> tuple[int, str]:
  _, error = process.communicate(timeout=programs.PATIENCE_SECONDS)
  return process.returncode, error


@pytest.mark.process
def test_what_takes_far_longer_than_usual_ends_the_program(tmp_path, started):
  code, error = end(started('time.sleep(100)'))
  assert code == watchdog.Hung.exit_code == 10
  *_, line = error.splitlines()
  assert line.startswith('error: step 10: a step has taken 1 s, usually 0.00')
  assert 'File "<string>", line 15 in <module>' in error
  (file,) = Path(tmp_path, watchdog.FOLDER).iterdir()
  assert 'File "<string>", line 15 in <module>' in file.read_text()


@pytest.mark.process
@pytest.mark.parametrize(
  ('stands', 'settings'),
  [
    (SLEEPS, {'factor': 0.0}),  # turned off
    (SLEEPS, {'kind': ''}),  # it has no usual time
    (SLEEPS, {'factor': 1e6}),
    (f'watch.begin("a save", 10); {SLEEPS}', {}),
    (f'watch.__exit__(); {SLEEPS}', {}),
  ],
)
def test_what_may_take_longer_is_left_alone(started, stands, settings):
  assert end(started(stands, **settings)) == (0, '')


@pytest.mark.process
def test_what_has_no_usual_time_has_a_bound(started):
  process = started('time.sleep(100)', first=1.0, kind='')
  code, error = end(process)
  assert code == 10 and 'usually' not in error


@pytest.mark.slow
@pytest.mark.process
def test_a_process_that_was_stopped_has_not_hung(started):
  """Nor has a laptop that slept: time counts while the process runs."""
  process = started(WAITS, least=6.0)
  time.sleep(1.3)  # it is counted by then
  process.send_signal(signal.SIGSTOP)
  time.sleep(8.0)
  process.send_signal(signal.SIGCONT)
  assert end(process) == (0, '')


@pytest.mark.process
def test_who_stands_in_a_debugger_is_left_alone(started):
  process = started('import pdb; pdb.set_trace()')
  time.sleep(1.5)
  assert process.poll() is None
  assert process.communicate('continue\n')[1] == ''
  assert process.returncode == 0


@pytest.mark.process
def test_a_run_in_the_debugger_of_an_editor_is_left_alone(started):
  looks = 'exec("time.sleep(1.5)", {"__name__": "pydevd", "time": time})'
  assert end(started(looks)) == (0, '')


@pytest.mark.process
def test_a_full_disk_keeps_no_run_that_hangs(started):
  """Not even a temporary file can be written."""
  none = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))'
  code, error = end(started(f'{none}; time.sleep(100)'))
  assert code == 10 and 'in <module>' in error
  assert error.splitlines()[-1].startswith('error: step 10: a step has taken')


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('is_full', [True, False])
def test_a_stderr_that_takes_nothing_keeps_no_run_that_hangs(started, is_full):
  """Nobody reads the pipe, or it is closed."""
  full = 'os.set_blocking(2, False); [os.write(2, bytes(1024)) for _ in range('
  full = (
    f'import os; {full}64)]; os.set_blocking(2, True)'
    if is_full
    else 'import os; os.close(2)'
  )
  process = started(f'{full}; time.sleep(100)')
  assert process.wait(programs.PATIENCE_SECONDS) == 10


@pytest.mark.parametrize('key', ['least_seconds', 'first_seconds'])
def test_settings_that_would_end_each_run_are_one_line(data, tmp_path, key):
  c = programs.make(data, **{f'watchdog__{key}': 0.0})
  with pytest.raises(
    config.ConfigError, match=f'{key}=0 end|{key}=0,'
  ) as error:
    train.train(c, tmp_path / 'run')
  assert 'factor=0 turns it off' in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.fixture
def watch(tmp_path):
  """A watchdog that judges; the thread that watches is not started."""
  group = process_group.ProcessGroup(0, {}, ['zero', 'one', 'two'])
  return watchdog.Watchdog(
    tmp_path, group, factor=20.0, least_seconds=1.0, first_seconds=9.0
  )


def report(step, waited, most, name='the step', number=0):
  return {
    'number': number or step,
    'name': name,
    'step': step,
    'waited': waited,
    'usual': 0.5,
    'most': most,
  }


def test_the_process_that_is_behind_is_named(watch):
  ahead, behind = report(8, 11.0, 10.0), report(7, 12.0, 10.0)
  assert watch._judge({0: ahead, 1: behind, 2: ahead}) == (
    'step 7: the step has taken 12 s, usually 0.5 s on one: see the stacks in'
    ' stalls/, and start it again'
  )
  assert ' on all 3 processes: ' in watch._judge(dict.fromkeys(range(3), ahead))


def test_waiting_for_a_process_that_may_take_its_time_is_no_hang(watch):
  """Process 0 saves, which has a deadline of its own; the others wait."""
  waits = report(8, 11.0, 10.0)
  saves = report(7, 12.0, 9000.0, 'saving')
  assert watch._judge({0: saves, 1: waits, 2: waits}) == ''
  # They may be further within the same step.
  saves = report(8, 12.0, 9000.0, 'saving', number=20)
  waits = report(8, 11.0, 10.0, 'evaluating valid', number=21)
  assert watch._judge({0: saves, 1: waits, 2: waits}) == ''


# --- stragglers


@pytest.fixture
def three():
  """Compares processes; what they tell is handed over by the test."""
  return stragglers.Stragglers(
    process_group.ProcessGroup(0, {}, ['zero', 'one', 'two'])
  )


def windows(three, *times, whole=0.1):
  """Hands over the own times of three processes, window by window."""
  news = []
  for number, (zero, one, two) in enumerate(times):
    for n in range(stragglers.STEPS):
      step = number * stragglers.STEPS + n + 1
      if n == stragglers.STEPS - 1:
        three._hear(1, {'step': step, 'seconds': one})
        three._hear(2, {'step': step, 'seconds': two})
      if found := three.add(step, zero, whole):
        news.append(found)
  return news


def test_a_process_is_named_when_it_is_slow_twice_in_a_row(three):
  (found,) = windows(
    three, (0.0, 0.01, 0.0), (0.0, 0.05, 0.0), (0.0, 0.06, 0.0)
  )
  assert (found.process, found.step, found.since) == (1, 60, 21)
  assert found.seconds == pytest.approx(0.06)
  assert found.share == pytest.approx(0.6)


def test_process_0_is_named_too_and_recovers(three):
  slow, same = (0.05, 0.0, 0.0), (0.0, 0.0, 0.0)
  found = windows(three, slow, slow, slow, same, same, same)
  assert [(x.process, x.step) for x in found] == [(0, 40), (0, 60), (None, 100)]


@pytest.mark.parametrize(
  'times',
  [
    [(0.0, 0.05, 0.0), (0.0, 0.0, 0.05)] * 2,  # not the same one twice
    [(0.05, 0.05, 0.05)] * 3,  # all are slow
    [(0.0, 0.015, 0.0)] * 3,  # less than a fifth of a step
  ],
)
def test_nobody_is_named_for_less(three, times):
  assert windows(three, *times) == []


def test_milliseconds_are_nothing(three):
  assert windows(three, *[(0.0, 0.009, 0.0)] * 3, whole=0.01) == []
