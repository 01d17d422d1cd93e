"""Two processes as one run: the same numbers, and none outlives the other."""

import contextlib
import os
from pathlib import Path
import signal
import socket
import struct
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


def pair(start, program, arguments, silence='', settings=None, second=None):
  """Starts two processes of four devices each as one run.

  Settings of the environment may hold {port} and {index}; `second` are those of
  process 1 alone.
  """
  port = free_port()
  given = {processes.VARIABLE: f'localhost:{{port}},{{index}},2{silence}'}
  given |= settings or {}
  return [
    start(
      program,
      arguments,
      settings={
        'JAX_NUM_CPU_DEVICES': '4',
        **{k: v.format(port=port, index=index) for k, v in given.items()},
        **((second or {}) if index else {}),
      },
    )
    for index in (0, 1)
  ]


def listens_on(pid: int) -> set[str]:
  """Lists the addresses that a process of this machine listens on."""
  inodes = set()
  for path in Path(f'/proc/{pid}/fd').iterdir():
    with contextlib.suppress(OSError):
      inodes.add(os.readlink(path))
  found = set()
  for name, family in (('tcp', socket.AF_INET), ('tcp6', socket.AF_INET6)):
    for line in Path(f'/proc/{pid}/net/{name}').read_text().splitlines()[1:]:
      words = line.split()
      if words[3] == '0A' and f'socket:[{words[9]}]' in inodes:
        digits, _ = words[1].split(':')
        # Words of four bytes, each in the machine's order.
        bytes_ = b''.join(
          struct.pack('=I', int(digits[i : i + 8], 16))
          for i in range(0, len(digits), 8)
        )
        address = socket.inet_ntop(family, bytes_)
        found.add(address.removeprefix('::ffff:'))
  return found


# What SLURM tells the processes of a job of two tasks.
SLURM = {
  processes.VARIABLE: 'auto',
  'SLURM_JOB_ID': '{port}',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '{index}',
  'SLURM_LOCALID': '{index}',
}


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
def test_two_processes_that_are_stuck_go_back_together(
  start, data, tmp_path, monkeypatch
):
  fault = {'FAULT': 'nan_grad@8-11'}
  changes = {**CHANGES, 'max_skipped': 2}
  flags = programs.flags(data, tmp_path / 'two', **changes)
  two = pair(start, 'train', flags, settings=fault)
  assert [process.wait() for process in two] == [0, 0], two[0].text()
  monkeypatch.setenv('FAULT', fault['FAULT'])
  train.train(programs.make(data, **changes), tmp_path / 'one')
  close(programs.losses(tmp_path / 'two'), programs.losses(tmp_path / 'one'))
  dropped = [
    checkpoint.read_meta(tmp_path / name)['dropped'] for name in ('one', 'two')
  ]
  assert dropped[0] == dropped[1] == {'in_a_row': 0, 'left_out': [[6, 11]]}


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
    f'{workdir}: by a signal at step {step}, which is saved; the same'
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
  second = {'RAISE_AT': '20'}
  two = pair(start, 'tests.processes_peer', ['watch'], second=second)
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


# --- where they listen


def own_address() -> str:
  """Finds this machine's address in its network."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('192.0.2.1', 9))
    except OSError:
      pytest.skip('this machine has no network')
    return probe.getsockname()[0]


@pytest.mark.parametrize('way', ['by hand', 'auto'])
def test_a_run_of_one_machine_listens_on_loopback(start, way):
  nodes = {'SLURM_STEP_NODELIST': own_address()}
  settings = {} if way == 'by hand' else {**SLURM, **nodes}
  two = pair(start, 'tests.processes_peer', ['watch'], settings=settings)
  wait_until_ready(two)
  found = set().union(*(listens_on(process.pid) for process in two))
  assert found
  assert {x.split()[0] for x in found} <= {
    '127.0.0.1',
    '::1',
    '::ffff:127.0.0.1',
  }


def test_a_run_of_several_machines_listens_on_the_private_address(start):
  own = own_address()
  settings = {**SLURM, 'SLURM_STEP_NODELIST': own}
  settings |= {processes.LISTEN: 'private', processes.SECRET: 'secret' * 4}
  two = pair(start, 'tests.processes_peer', ['watch'], settings=settings)
  wait_until_ready(two)
  found = set().union(*(listens_on(process.pid) for process in two))
  assert own in found and not found & {'0.0.0.0', '::'}


def test_a_process_with_another_secret_is_not_admitted(start):
  settings = {processes.SECRET: 'a-secret-of-process-{index}'}
  two = pair(start, 'tests.processes_peer', ['watch'], settings=settings)
  assert two[1].error(7) == (
    'process 0 at localhost, localhost does not know this process: give all'
    ' processes of a run the same LM_SECRET, and each its own number'
  )


def test_where_a_run_listens_is_checked(monkeypatch):
  for wrong in ('0.0.0.0', '::', 'no-such-host.invalid'):
    monkeypatch.setenv(processes.LISTEN, wrong)
    with pytest.raises(config.ConfigError) as caught:
      processes.start('localhost:80,0,2')
    assert str(caught.value) == (
      f"LM_LISTEN={wrong}: give one address of this machine, or 'private'"
    )
  monkeypatch.delenv(processes.LISTEN)
  monkeypatch.setenv(processes.SECRET, 'short')
  with pytest.raises(config.ConfigError, match='LM_SECRET: give 16 to 256 '):
    processes.start('localhost:80,0,2')
  monkeypatch.delenv(processes.SECRET)
  # as Debian names a machine in /etc/hosts
  loopback = [(socket.AF_INET, 1, 6, '', ('127.0.1.1', 0))]
  monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: loopback)
  with pytest.raises(config.ConfigError) as caught:
    processes.start('node1:80,0,2')
  assert str(caught.value) == (
    'LM_DISTRIBUTED=node1:80: node1 is a name for loopback here, where no other'
    ' host comes in: give its address, or LM_LISTEN=private'
  )


@pytest.mark.process
def test_an_address_of_another_machine_is_one_line():
  spec = f'198.51.100.7:{free_port()},0,2'
  said = alone(spec, 2)
  assert said.startswith(f'error: LM_DISTRIBUTED={spec}: ')
  assert said.endswith(
    'with a free port of process 0, which may need LM_LISTEN behind another'
    ' address'
  )


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
  assert alone(spec, 7) == (
    f'error: LM_DISTRIBUTED={spec}: processes did not meet at'
    f' {spec.split(",")[0]} in 2 s: start them all, and check address and'
    ' firewall'
  )


def alone(spec: str, exit_code: int) -> str:
  """Starts one process of a run; returns its last line."""
  code = (
    'from lm import config\nfrom lm.runtime import processes\n'
    f'config.main(lambda _: processes.start("{spec}", wait_seconds=2) and 0)'
  )
  found = subprocess.run(
    [sys.executable, '-c', code],
    cwd=programs.ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
    timeout=programs.PATIENCE_SECONDS,
  )
  assert found.returncode == exit_code, found.stderr
  return found.stderr.splitlines()[-1]


def test_a_single_process_never_waits():
  group = processes.start('')
  assert group.leads and group.count == 1
  assert group.gather('x', 5, 0.0) == [5]
  assert group.share('y', 6, 0.0) == 6
  assert [group.stop(flag) for flag in (False, True)] == [False, True]
  group.meet('z', 0.0)
  group.check()
  group.close()
