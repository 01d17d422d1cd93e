"""A worker trains one run after another, and each as `lm.train` would."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from lm import config
from lm.reporting import metrics_log
from lm.sweeping import worker, workers
from tests import programs
from tools import compare_runs

STEPS = {'steps': 12, 'optim__warmup': 2}


def request(name, folder, workdir, **changes):
  """Spells the request of a run, with a line's end."""
  c = programs.make(folder, **{**STEPS, **changes})
  line = {
    'id': name,
    'config': config.to_json(c),
    'workdir': str(workdir / name),
    'command': ['--config=x.py', '--workdir=x'],
  }
  return json.dumps(line) + '\n'


def started(log, **environment):
  """Starts a worker, whose standard error goes to a file."""
  with log.open('ab') as errors:
    return subprocess.Popen(
      [sys.executable, '-m', 'lm.sweeping.worker'],
      cwd=programs.ROOT,
      env={**os.environ, **environment},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    )


@pytest.mark.slow
@pytest.mark.process
def test_runs_of_a_worker_are_those_of_the_program(data, tmp_path, start):
  requests = [
    request('a', data, tmp_path, optim__peak=1e-3),
    request('bad', data, tmp_path, optim__warmup=400),
    request('b', data, tmp_path, optim__peak=3e-3, seed=5),
  ]
  process = started(tmp_path / 'log')
  out, _ = process.communicate(
    ''.join(requests), timeout=programs.PATIENCE_SECONDS
  )
  log = (tmp_path / 'log').read_text()
  assert process.returncode == 0, log
  a, bad, b = [json.loads(line) for line in out.splitlines()]
  done = {'state': 'done', 'exit_code': 0, 'error': None}
  assert a == {'id': 'a', **done} and b == {'id': 'b', **done}
  assert (bad['id'], bad['state'], bad['exit_code']) == ('bad', 'failed', 2)
  assert 'optim.warmup=400' in bad['error'] and 'Traceback' not in log
  record = json.loads((tmp_path / 'b' / 'record.json').read_text())
  (begun,) = record['starts']
  words = ['python', '-m', 'lm.train', '--config=x.py', '--workdir=x']
  assert begun['command'] == words and begun['seed'] == 5
  flags = programs.flags(
    data, tmp_path / 'alone', **STEPS, optim__peak=3e-3, seed=5
  )
  assert start('train', flags).wait() == 0
  found = compare_runs.compare(tmp_path / 'b', tmp_path / 'alone')
  assert found.metrics_steps and not found.differs


@pytest.mark.slow
@pytest.mark.process
def test_sigterm_saves_the_run_and_ends_the_worker(data, tmp_path):
  process = started(tmp_path / 'log')
  assert process.stdin is not None and process.stdout is not None
  process.stdin.write(request('a', data, tmp_path, steps=100_000))
  process.stdin.write(request('b', data, tmp_path))
  process.stdin.flush()
  metrics = tmp_path / 'a' / 'metrics.jsonl'
  for _ in range(int(programs.PATIENCE_SECONDS / 0.05)):
    if metrics.exists() and metrics.stat().st_size:
      break
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(0.05)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=programs.PATIENCE_SECONDS)
  (answer,) = [json.loads(line) for line in out.splitlines()]
  assert (answer['state'], answer['exit_code']) == ('stopped', 143)
  assert 'which is saved' in answer['error']
  assert process.returncode == 143
  last = metrics_log.read(metrics)[-1]['step']
  saved = max(int(x.name) for x in (tmp_path / 'a' / 'checkpoints').iterdir())
  assert saved == last
  assert not (tmp_path / 'b').exists()


@pytest.mark.slow
@pytest.mark.process
def test_a_second_process_finds_all_programs(data, tmp_path):
  """A failure means that each process of a sweep compiles for itself."""
  cache, sizes = tmp_path / 'cache', []
  for n, peaks in enumerate([(1e-3, 2e-3), (3e-3, 4e-3)]):
    process = started(
      tmp_path / 'log', JAX_COMPILATION_CACHE_DIR=str(cache), XLA_FLAGS=''
    )
    lines = [
      request(f'{n}{i}', data, tmp_path, optim__peak=peak, seed=10 * n + i)
      for i, peak in enumerate(peaks)
    ]
    out, _ = process.communicate(
      ''.join(lines), timeout=programs.PATIENCE_SECONDS
    )
    assert out.count('"done"') == 2, (tmp_path / 'log').read_text()
    sizes.append(len(list(cache.glob('*-cache'))))
  assert 0 < sizes[0] == sizes[1]


@pytest.mark.parametrize(
  'line', ['nonsense', '[]', '{"id": "a"}', '{"id": 1, "config": "", "x": 2}']
)
def test_a_line_that_is_no_request_is_refused(line, tmp_path):
  with (
    (tmp_path / 'answers').open('w') as answers,
    (tmp_path / 'requests').open('w+') as requests,
  ):
    requests.write(line + '\n')
    requests.seek(0)
    with pytest.raises(config.ConfigError, match='a request is a line of JSON'):
      worker.serve(requests, answers)
  assert not Path(tmp_path, 'answers').read_text()


@pytest.mark.process
def test_a_worker_that_ends_itself_has_crashed(monkeypatch, tmp_path):
  """A failure means that such a run is started again and again, for ever."""
  monkeypatch.setattr(workers.sys, 'executable', '/bin/true')
  worker = workers.Worker(tmp_path / 'log')
  worker.train('a', '{}', tmp_path / 'a', [])
  result = None
  while result is None:
    result = worker.poll()
  assert result.state == 'crashed'
  assert result.error == 'the process ended itself, with exit code 0'
