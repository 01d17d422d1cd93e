"""A replay tells a wrong bit of the machine from wrong data."""

import itertools
import json
from pathlib import Path

import jax
import pytest

from lm import checkpoint, config, train
from lm.runtime import devices
from lm.training import run_checks, setup
from tests import programs
from tools import replay


@pytest.fixture
def tiny(data):
  """Makes the config of a run that saves every third step."""

  def make(**changes):
    return programs.on_eight(data, steps=12, save_every=3, **changes)

  return make


def test_right_bits_are_those_of_the_data(tiny, tmp_path):
  train.train(tiny(), tmp_path / 'run')
  before = sorted(tmp_path.rglob('*'))
  assert replay.replay(tmp_path / 'run', 6) == ('data', [])
  assert replay.replay(tmp_path / 'run') == ('data', [])
  assert sorted(tmp_path.rglob('*')) == before


def test_a_wrong_bit_is_the_hardware(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('FAULT', 'flip_bit@4')
  train.train(tiny(), tmp_path / 'run')
  monkeypatch.delenv('FAULT')
  capsys.readouterr()
  replay.main([f'{tmp_path}/run', '--step=6', '--json'])
  found = json.loads(capsys.readouterr().out)
  assert found['cause'] == 'hardware'
  assert any('params/' in x for x in found['leaves'])
  # From a checkpoint with the wrong bit on, all is right again.
  assert replay.replay(tmp_path / 'run', 9) == ('data', [])


def test_wrong_data_is_found_as_such(tiny, tmp_path, monkeypatch):
  # What data and code do comes again, whatever it is.
  monkeypatch.setenv('FAULT', 'nan_grad@4')
  train.train(tiny(), tmp_path / 'run')
  assert replay.replay(tmp_path / 'run', 6) == ('data', [])


def test_what_differs_each_time_is_not_deterministic(
  tiny, tmp_path, monkeypatch
):
  train.train(tiny(), tmp_path / 'run')
  right, numbers = setup.Run.update, itertools.count()

  def update(run, state, batch):
    state, metrics = right(run, state, batch)
    extra = {**state.extra, 'skipped': state.extra['skipped'] + next(numbers)}
    return state._replace(extra=extra), metrics

  monkeypatch.setattr(setup.Run, 'update', update)
  cause, leaves = replay.replay(tmp_path / 'run', 6)
  assert (cause, leaves) == ('nondeterministic', ['extra/skipped'])


def test_keys_that_changed_on_the_way_are_those_of_the_later_step(
  tiny, data, tmp_path
):
  train.train(tiny(), tmp_path / 'run')
  c = programs.on_eight(data, steps=18, save_every=3, allow='steps')
  train.train(c, tmp_path / 'run')
  assert replay.replay(tmp_path / 'run', 15) == ('data', [])


def test_a_step_without_one_before_is_refused(tiny, tmp_path):
  train.train(tiny(), tmp_path / 'run')
  for step in (3, 4, 100):
    with pytest.raises(config.ConfigError, match=f'--step={step}: needs'):
      replay.replay(tmp_path / 'run', step)


def test_another_machine_is_refused(tiny, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # a long path would cut the message
  train.train(tiny(), 'run')
  monkeypatch.setattr(devices, 'machine', lambda: '4 x TPU v5p, jax 0.9')
  with pytest.raises(config.ConfigError) as error:
    replay.replay(Path('run'), 6)
  assert str(error.value) == (
    f'run: trained with 8 x cpu, jax {jax.__version__}, and here is '
    '4 x TPU v5p, jax 0.9: bits would differ for that alone; replay it on such '
    'a machine'
  )


def test_steps_over_a_rollback_are_refused(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv('FAULT', 'nan_grad@4-7')
  train.train(tiny(max_skipped=3), tmp_path / 'run')
  with pytest.raises(config.ConfigError, match='went back from step 8 to 3'):
    replay.replay(tmp_path / 'run', 8)


@pytest.mark.slow
@pytest.mark.process
def test_the_program_prints_its_cause(data, alone, start):
  del data
  process = start('tools.replay', [str(alone), '--step=12'])
  assert process.wait() == 0, process.text()
  assert process.text().splitlines()[-1] == 'data'
  assert start('tools.replay', [str(alone), '--step=5']).error(2)


@pytest.mark.parametrize('key', ['log', 'watchdog'])
def test_a_run_of_an_older_version_is_replayed_and_goes_on(
  tiny, data, tmp_path, monkeypatch, key
):
  """It was made before there was a key."""
  written = config.to_json

  def older(c):
    found = json.loads(written(c))
    found.pop(key, None)
    return json.dumps(found)

  with monkeypatch.context() as patch:
    patch.setattr(config, 'to_json', older)
    patch.setattr(run_checks, 'same_everywhere', lambda *_: None)
    train.train(tiny(), tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  assert key not in json.loads(file.read_text())
  monkeypatch.setenv('LM_TRUST', f'tests,{data}/')
  assert replay.replay(tmp_path / 'run', 6) == ('data', [])
  changes = {'steps': '15', 'allow': "('steps','optim')"}
  train.train(config.load(file, changes), tmp_path / 'run')
  assert checkpoint.steps(tmp_path / 'run')[-1] == 15
