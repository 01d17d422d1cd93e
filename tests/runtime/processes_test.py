"""Two processes as one run: the same numbers, and none outlives the other."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm import checkpoint, config, errors, sharding, train
from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.runtime import process_group, processes
from tests import processes_peer, programs

STEPS = 24
# All devices split rows, so that little crosses the processes.
CHANGES = {'mesh__fsdp': 2, 'batch_size': 8, 'steps': STEPS, 'eval_every': 12}
LIMIT_SECONDS = 30.0


def free_port() -> int:
  """Finds a port that nobody listens on."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def pair(start, program, arguments, silence='', raises_at=''):
  """Starts two processes of four devices each as one run."""
  port = free_port()
  return [
    start(
      program,
      arguments,
      settings={
        'JAX_NUM_CPU_DEVICES': '4',
        processes.VARIABLE: f'localhost:{port},{index},2{silence}',
        'RAISE_AT': raises_at if index else '',
      },
    )
    for index in (0, 1)
  ]


def wait_until_ready(two) -> None:
  for process in two:
    process.wait_for(lambda p=process: 'ready' in p.text())


def named(process, index: int) -> str:
  return f'process {index} (pid {process.pid} on {socket.gethostname()[:40]})'


def close(found, expected) -> None:
  """Compares the losses of a run's steps with those of an uninterrupted one."""
  assert found and [step for step, _ in found] == [s for s, _ in expected]
  np.testing.assert_allclose(
    [loss for _, loss in found], [loss for _, loss in expected], atol=1e-5
  )


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
  """A run of one process with eight devices; do not change it."""
  workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
  train.train(programs.make(data, **CHANGES), workdir)
  return workdir


# --- the same numbers


def test_two_processes_place_save_and_restore_what_one_does(
  start, data, tmp_path
):
  (tmp_path / 'train').symlink_to(data / 'train')
  mesh = sharding.make_mesh(data=1, fsdp=8)
  made, where = processes_peer.state(mesh, [None, 'fsdp', None])
  with checkpoint.Checkpointer(tmp_path / 'one') as saver:
    saver.save(7, made, {'data': {'step': 7}})
  two = pair(start, 'tests.processes_peer', ['laws', str(tmp_path)])
  for process in two:
    assert process.wait() == 0, process.text()
    assert 'all laws hold' in process.text()
  digest = checkpoint.digest(tmp_path / 'one', 7)
  like = jax.eval_shape(lambda: made)
  for name in ('rows', 'columns', 'both'):
    assert checkpoint.digest(tmp_path / name, 7) == digest
    found, _ = checkpoint.restore(tmp_path / name, like, where)
    processes_peer.same(found, made)
    params = checkpoint.restore_params(tmp_path / name)
    np.testing.assert_array_equal(params['cut'], made['params']['cut'])
  files = manifest.directory(tmp_path / 'both', 7) / 'state'
  assert len(list((files / 'params.cut').glob('[0-9]*'))) == 8
  # and a changed bit in one of many parts is found
  programs.flip(files / 'params.cut' / '1.3.0')
  with pytest.raises(errors.Damaged, match='sha256 differs'):
    checkpoint.verify(tmp_path / 'both', 7)


@pytest.mark.slow
def test_a_run_moves_from_one_process_to_two_and_back_after_a_kill(
  start, data, uninterrupted, tmp_path
):
  workdir = programs.rewind(uninterrupted, tmp_path / 'run', 6)
  flags = programs.flags(data, workdir, **CHANGES, data__seconds=0.1)
  two = pair(start, 'train', [*flags, '--config.allow=data.seconds'])
  two[0].wait_for(lambda: checkpoint.steps(workdir)[-1] == 12)
  two[1].send(signal.SIGKILL)
  since = time.monotonic()
  assert two[0].error(process_group.Lost.exit_code) == (
    f'{named(two[1], 1)} ended without a word: see its output'
  )
  assert time.monotonic() - since < LIMIT_SECONDS
  saved = checkpoint.steps(workdir)[-1]
  assert 12 <= saved < STEPS
  c = programs.make(data, **CHANGES, data__seconds=0.1, allow='data.seconds')
  train.train(c, workdir)
  close(programs.losses(workdir), programs.losses(uninterrupted))
  # and what it has seen is exactly what the uninterrupted run has
  last, expected = (
    [
      {k: v for k, v in record.items() if 'tokens' in k and 'second' not in k}
      for record in metrics_log.read(run / 'metrics.jsonl')[-3:]
    ]
    for run in (workdir, uninterrupted)
  )
  assert last == expected and len(set().union(*last)) == 2
  positions = [
    checkpoint.read_meta(w)['data'] for w in (workdir, uninterrupted)
  ]
  assert positions[0] == positions[1]


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_saved_step(
  start, data, uninterrupted, tmp_path
):
  workdir = tmp_path / 'run'
  flags = programs.flags(data, workdir, **CHANGES, data__seconds=0.2)
  two = pair(start, 'train', [*flags, '--config.save_every=100'])
  two[0].wait_for(lambda: len(programs.losses(workdir)) >= 2)
  two[1].send(signal.SIGTERM)
  said = [process.error(143) for process in two]
  (step,) = checkpoint.steps(workdir)
  checkpoint.verify(workdir, step)
  assert 2 <= step < STEPS
  assert said == 2 * [
    f'{workdir}: stopped by a signal at step {step}, which is saved; the same'
    ' command goes on from there'
  ]
  close(programs.losses(workdir), programs.losses(uninterrupted)[:step])


# --- none outlives the other


def test_a_busy_process_names_process_0_when_it_is_killed(start):
  two = pair(start, 'tests.processes_peer', ['sleep'])
  wait_until_ready(two)
  two[0].send(signal.SIGKILL)
  since = time.monotonic()
  assert two[1].error(7) == (
    f'{named(two[0], 0)} ended without a word: see its output'
  )
  assert time.monotonic() - since < LIMIT_SECONDS


def test_a_process_names_the_one_that_raises_and_its_error(start):
  two = pair(start, 'tests.processes_peer', ['watch'], raises_at='20')
  wait_until_ready(two)
  since = time.monotonic()
  assert two[0].error(7) == (
    f'{named(two[1], 1)} failed: ValueError: the disk is on fire'
  )
  assert two[1].wait() == 1
  assert 'Traceback' in two[1].text()
  assert time.monotonic() - since < LIMIT_SECONDS


def test_a_process_that_stands_still_is_given_up_and_ends_when_it_wakes(start):
  groups = {
    index: pair(start, 'tests.processes_peer', ['watch'], ',6')
    for index in (0, 1)
  }
  for index, two in groups.items():
    wait_until_ready(two)
    two[index].send(signal.SIGSTOP)
  since = time.monotonic()
  for index, two in groups.items():
    assert two[1 - index].error(7) == (
      f'{named(two[index], index)} has been silent for 6 s: stopped, hung or'
      ' cut off'
    )
    assert time.monotonic() - since < LIMIT_SECONDS
    two[index].send(signal.SIGCONT)
    said = two[index].error(7)
    assert said.startswith(f'{named(two[index], index)}, this one, stood still')


def test_by_default_the_last_process_ends_within_half_a_minute():
  default = processes.start.__globals__['_parse']('localhost:1,0,2')[3]
  longest = default * 1.1 + process_group.GRACE_SECONDS * 2
  assert default >= 10 and longest < LIMIT_SECONDS


# --- what a user can get wrong


@pytest.mark.parametrize(
  'spec',
  [
    'here',
    'localhost:80',
    'localhost:0,0,2',
    'localhost:80,2,2',
    'auto,1,2',
    'localhost:80,0,2,0.1',
    ':80,0,2',
    'localhost:80,0,two',
  ],
)
def test_a_wrong_variable_is_one_line(spec):
  with pytest.raises(config.ConfigError) as caught:
    processes.start(spec)
  assert str(caught.value) == (
    f'LM_DISTRIBUTED={spec}: want auto or HOST:PORT,PROCESS,COUNT, and perhaps'
    ' ,SECONDS of silence from 1 to 3600'
  )


@pytest.mark.process
def test_waiting_for_missing_processes_has_a_deadline():
  spec = f'localhost:{free_port()},1,2'
  code = (
    'from lm.runtime import processes\n'
    f'processes.start("{spec}", wait_seconds=2)'
  )
  found = subprocess.run(
    [sys.executable, '-c', code],
    cwd=programs.ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )
  assert found.returncode == 7
  assert found.stderr.splitlines()[-1] == (
    f'error: LM_DISTRIBUTED={spec}: processes did not meet at'
    f' {spec.split(",")[0]} in 2 s: start them all, and check address and'
    ' firewall'
  )


def test_a_single_process_never_waits():
  group = processes.start('')
  assert group.leads and group.count == 1
  assert group.gather('x', 5, 0.0) == [5]
  assert group.share('y', 6, 0.0) == 6
  assert [group.stop(flag) for flag in (False, True)] == [False, True]
  group.meet('z', 0.0)
  group.check()
  group.close()
