"""A run that hangs says where, ends with its code, and goes on when restarted.

The device waits for ever by FAULT=hang_step; with two processes, only one of
them, so that the other hangs in the next collective.
"""

import re

import pytest

from lm import checkpoint
from lm.reporting import metrics_log
from lm.runtime import watchdog
from tests import programs
from tests.runtime import processes_test

LIMITS = {'watchdog__factor': 20.0, 'watchdog__least_seconds': 3.0}
# Of two processes.
TOGETHER = {
  **processes_test.CHANGES,
  'steps': 64,
  'eval_every': 0,
  'save_every': 100,
}
ONE = {'JAX_NUM_CPU_DEVICES': '1'}  # of each


def stacks(workdir, step, index=0) -> str:
  """Reads what a process has stored of its threads."""
  file = workdir / watchdog.FOLDER / f'step-{step:08d}-process-{index}.txt'
  return file.read_text()


def ended(process) -> str:
  """Waits for the end; returns its one line, which follows the stacks."""
  assert process.wait() == 10, process.text()
  *_, line = process.text().splitlines()
  assert line.startswith('error: ') and len(line) <= len('error: ') + 200
  return line.removeprefix('error: ')


def test_a_device_that_hangs_ends_the_run_which_goes_on(
  data, alone, start, tmp_path
):
  workdir = tmp_path / 'run'
  flags = programs.flags(data, workdir, **LIMITS)
  process = start('train', flags, fault='hang_step@14')
  assert re.fullmatch(
    r'step 15: the step has taken [3-9] s, usually \S+ s: see the stacks in '
    r'stalls/, and start it again',
    ended(process),
  )
  for text in (process.text(), stacks(workdir, 15)):
    assert 'MainThread: thread 0x' in text and 'in _hang' in text
    assert 'train.py' in text and 'lease.py' in text  # of all threads
  again = start('train', programs.flags(data, workdir))
  assert again.wait() == 0, again.text()
  digests = [checkpoint.digest(x, 36) for x in (workdir, alone)]
  assert digests[0] == digests[1]
  assert programs.losses(workdir) == programs.losses(alone)


def test_an_evaluator_that_hangs_ends_the_run(data, start, tmp_path):
  changes = {'watchdog__first_seconds': 3.0, 'evals__pause__seconds': 100.0}
  flags = programs.flags(data, tmp_path, **LIMITS, **changes, eval_every=12)
  assert re.fullmatch(
    r'step 12: evaluating pause has taken [3-9] s: see the stacks in stalls/, '
    r'and start it again',
    ended(start('train', flags)),
  )
  assert 'tiny_config.py' in stacks(tmp_path, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('fault', 'work', 'where', 'loss'),
  [
    # Reading the checkpoint, each file of which takes a minute.
    ('slow_read@60', 'step 6: starting the run', 'manifest.py', 'make'),
    # Compiling, in a thread that the main one waits for.
    ('', 'step 6: starting the run', 'tiny_config.py', 'endless'),
    # The first step of this start.
    ('hang_step@6', 'step 7: the step', 'injected.py', 'make'),
  ],
)
def test_a_start_that_hangs_ends_the_run(
  data, alone, start, tmp_path, fault, work, where, loss
):
  workdir = programs.rewind(alone, tmp_path / 'run', 6)
  # Long enough for a start that is not to be ended.
  first = 6.0 if 'starting' in work else 60.0
  settings = {**LIMITS, 'watchdog__first_seconds': first}
  if loss == 'endless':
    settings |= {'loss__fn': 'tests.tiny_config:endless_loss', 'allow': 'loss'}
  flags = programs.flags(data, workdir, **settings)
  process = start('train', flags, fault=fault)
  said = f'{work} has taken [0-9]+ s: see the stacks in stalls/, and start'
  assert re.match(said, ended(process))
  assert where in stacks(workdir, int(work.split(':')[0].split()[1]))
  again = start('train', programs.flags(data, workdir))
  assert again.wait() == 0, again.text()
  assert checkpoint.digest(workdir, 36) == checkpoint.digest(alone, 36)


@pytest.mark.slow
def test_a_first_collective_that_hangs_ends_all(data, start, tmp_path):
  """Process 1 waits for the sums of process 0, whose device hangs."""
  limits = {**LIMITS, 'watchdog__first_seconds': 60.0}
  flags = programs.flags(data, tmp_path, **TOGETHER, **limits)
  fault = {'FAULT': 'hang_step@0'}
  two = processes_test.pair(start, 'train', flags, settings=ONE | fault)
  said = [ended(process) for process in two]
  assert said[0] == said[1] and re.match('step [12]: the step has', said[0])
  assert sum('in _hang' in x.text() for x in two) == 1


@pytest.mark.slow
def test_processes_that_hang_in_a_collective_name_each_other(
  data, start, tmp_path
):
  """The callback runs on the first device; process 1 waits for its sums."""
  flags = programs.flags(data, tmp_path, **TOGETHER, **LIMITS)
  fault = {'FAULT': 'hang_step@50'}
  two = processes_test.pair(start, 'train', flags, settings=ONE | fault)
  said = [ended(process) for process in two]
  assert said[0] == said[1]
  assert re.match('step 5[12]: the step has taken ', said[0])
  assert 'on all 2 processes' in said[0] or f'pid {two[0].pid} ' in said[0]
  step = int(re.findall('step (..):', said[0])[0])
  files = {x.name: x.read_text() for x in (tmp_path / 'stalls').iterdir()}
  hung, waiting = (
    [text for name, text in files.items() if f'-process-{i}' in name]
    for i in (0, 1)
  )
  assert len(hung) == len(waiting) == 1 and step in (51, 52)
  assert 'in _hang' in hung[0] and 'in _hang' not in waiting[0]
  assert 'lm/train.py' in waiting[0]
  # Nobody was slow before.
  assert 'makes the others wait' not in two[0].text()
  records = metrics_log.read(tmp_path / 'metrics.jsonl')
  assert records and not any('straggler/process' in x for x in records)


@pytest.mark.slow
def test_the_process_that_makes_the_others_wait_is_named(data, start, tmp_path):
  flags = programs.flags(data, tmp_path, **TOGETHER)
  fault = {'FAULT': 'slow_host@0.2'}
  two = processes_test.pair(start, 'train', flags, settings=ONE, second=fault)
  assert [process.wait() for process in two] == [0, 0], two[0].text()
  (line,) = (x for x in two[0].text().splitlines() if 'makes the others' in x)
  name = re.escape(processes_test.named(two[1], 1))
  found = re.match(
    rf'step \d+: {name} makes the others wait since step (\d+): its own part '
    r'of a step is (\S+) s longer than theirs, (\d+)% of the step$',
    line,
  )
  assert found is not None, line
  assert int(found[1]) < 25 and 0.15 < float(found[2]) < 0.5
  records = metrics_log.read(tmp_path / 'metrics.jsonl')
  slow = [x for x in records if 'straggler/process' in x]
  assert slow and {x['straggler/process'] for x in slow} == {1}
  assert all(0.15 < x['straggler/seconds'] < 0.5 for x in slow)
