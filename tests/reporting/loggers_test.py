"""The real TensorBoard, W&B and trackio get each line once, with no network.

They lie in an environment of their own, which the first test makes.
"""

import json
import math
import os
from pathlib import Path
import shutil
import subprocess
import sysconfig

import pytest

from lm.reporting import metrics_log
from tests import programs
from tools.bench import peers, workers

pytestmark = [pytest.mark.slow, pytest.mark.process]
PEER = 'tests.reporting.loggers_peer'
STEPS = 18


@pytest.fixture(scope='session')
def python() -> str:
  """The interpreter of the environment, which also sees what lm needs."""
  try:
    found = peers.environment(peers.LOGGERS, peers.LOGGERS_REQUIREMENTS)
  except workers.Failed as error:
    pytest.skip(f'cannot be installed here: {error}')
  (packages,) = (peers.LOGGERS / 'lib').glob('python*/site-packages')
  # After its own, which are as new as it wants them.
  (packages / 'zz_lm.pth').write_text(sysconfig.get_path('purelib') + '\n')
  return found


def no_network() -> list[str]:
  """Spells a command that takes the network away, where Linux lets us."""
  command = ['unshare', '--net', '--map-root-user']
  if shutil.which(command[0]) is None:
    return []
  works = subprocess.run([*command, 'true'], capture_output=True)
  return command if works.returncode == 0 else []


def run(python: str, folder: Path, *words: str, **settings: str):
  """Runs `loggers_peer`; a proxy that is not there stands in the way, too."""
  environment = {
    **{k: x for k, x in os.environ.items() if not k.startswith('WANDB')},
    'HTTP_PROXY': 'http://127.0.0.1:9',
    'HTTPS_PROXY': 'http://127.0.0.1:9',
    'JAX_PLATFORMS': 'cpu',
    'HOME': str(folder),
    'PYTHONPATH': str(programs.ROOT),
    'TRACKIO_DIR': str(folder / 'trackio'),
    **settings,
  }
  return subprocess.run(
    [*no_network(), python, '-m', PEER, *words],
    cwd=programs.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture(scope='session')
def killed(python, data, tmp_path_factory):
  """A run of three starts, of which two were killed in a save."""
  folder = tmp_path_factory.mktemp('killed')
  flags = programs.flags(
    data,
    folder / 'run',
    steps=STEPS,
    log_every=1,
    eval_every=6,
    evals__pause__seconds=4,
    log__to='wandb,trackio,tensorboard',
    log__project='birds',
    log__norms_every=4,
  )
  # While it pauses: what it has written is then with the writers, which take
  # a moment for it.
  for start, dies_at in ((0, 12), (6, 18), (12, None)):
    fault = f'die_in_save@{dies_at},slow_save@2' if dies_at else ''
    done = run(python, folder, 'train', *flags, FAULT=fault)
    assert done.returncode == (-9 if dies_at else 0), done.stderr
    assert f': step {start} of {STEPS}' in done.stderr
    # Programs read the stdout of those that train.
    assert not done.stdout and 'log.to' not in done.stderr
  return folder


def read(python, folder, name):
  result = run(python, folder, 'read', str(folder / 'run'), name)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


@pytest.mark.parametrize('name', ['tensorboard', 'trackio', 'wandb'])
def test_a_killed_run_is_one_run_with_each_line_once(python, killed, name):
  found = read(python, killed, name)
  points = {(step, key): value for step, key, value in found['points']}
  assert len(points) == len(found['points']), 'a value is there twice'
  want = {
    (line['step'], key): value
    for line in metrics_log.read(killed / 'run' / 'metrics.jsonl')
    for key, value in line.items()
    if key != 'step' and (name != 'trackio' or key != 'time')
  }
  assert points.keys() == want.keys()
  for (step, key), value in want.items():
    # A repeated step has the same numbers; times are those of the first time.
    if key in ('loss_nats', 'learning_rate') or '/' in key:
      assert math.isclose(points[step, key], value, rel_tol=1e-6), key
  assert found['config']
  stored = json.loads((killed / 'run' / 'writers.json').read_text())
  ids = {
    'trackio': [f'run-{stored["id"]}'],
    'wandb': [['birds', 'run', stored['id']]],
  }
  assert found.get('ids') == ids.get(name)


def test_a_server_gets_all_starts_as_one_run_of_wandb(python, killed):
  """W&B's own step counts on too, by which its charts sort lines.

  W&B had written nothing before the first kill, and half a record before the
  second, at which the sync would stop.
  """
  found = read(python, killed, 'synced')
  assert len(found['files']) > 1
  lines = found['lines']
  assert [x['_step'] for x in lines] == [*range(len(lines))]
  steps = [x['step'] for x in lines if 'loss_nats' in x]
  assert steps == [*range(1, STEPS + 1)]


def test_a_server_that_does_not_answer_costs_a_warning(python, data, tmp_path):
  flags = programs.flags(data, tmp_path / 'run', steps=6, log__to='wandb')
  # There is no key for it either.
  result = run(python, tmp_path, 'train', *flags, WANDB_MODE='online')
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('log.to: wandb failed at step 0') == 1
  assert metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')[-1]['step'] == 6
