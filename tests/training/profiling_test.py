"""A profile shows the steps that were asked for, and changes no number."""

import gzip
import json
import re

import jax
import pytest

from lm import checkpoint, config, errors, train
from tests import programs


def events(workdir):
  (path,) = (workdir / 'profile').rglob('*.trace.json.gz')
  return json.loads(gzip.decompress(path.read_bytes()))['traceEvents']


def steps(workdir):
  found = [x for x in events(workdir) if x.get('name') == 'train']
  return sorted(int(x['args']['step_num']) for x in found)


def test_a_profile_has_the_steps_and_scopes_and_changes_no_number(
  data, tmp_path, one_device, capfd
):
  changes = {'steps': 12, 'save_every': 12}
  train.train(programs.make(data, **changes), tmp_path / 'without')
  c = programs.make(data, profile='(4,7)', **changes)
  train.train(c, tmp_path / 'with')
  want = checkpoint.digest(tmp_path / 'without', 12)
  assert checkpoint.digest(tmp_path / 'with', 12) == want
  assert steps(tmp_path / 'with') == [5, 6, 7]
  (path,) = (tmp_path / 'with' / 'profile').rglob('*.xplane.pb')
  content = path.read_bytes()
  for scope in ('loss', 'optimizer', 'layers_0/attention', 'layers_0/mlp'):
    # The scopes of a gradient are in brackets: transpose(jvp(loss))/mul.
    assert re.search(rf'[/(]{scope}[)/]'.encode(), content), scope
  assert [*(tmp_path / 'with' / 'profile').rglob('perfetto_trace.json.gz')]
  assert not (tmp_path / 'without' / 'profile').exists()
  said = capfd.readouterr().err
  assert said.count(f'the profile lies in {tmp_path}/with/profile\n') == 1
  assert said.count('the profile lies') == 1


def test_a_run_that_goes_on_within_a_profile_traces_the_rest(
  data, tmp_path, one_device
):
  train.train(programs.make(data, steps=12), tmp_path / 'run')
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 6)
  c = programs.make(data, steps=12, profile='(4,8)')
  train.train(c, again)
  assert steps(again) == [7, 8]


def test_a_run_that_ends_within_a_profile_writes_it(
  data, tmp_path, one_device, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@7-20')
  changes = {'steps': 12, 'max_skipped': 2, 'max_rollbacks': 0}
  c = programs.make(data, profile='(5,12)', **changes)
  with pytest.raises(errors.NotFinite):
    train.train(c, tmp_path / 'run')
  assert steps(tmp_path / 'run')[0] == 6


@pytest.mark.parametrize(
  ('pair', 'text'),
  [
    (
      '(7,4)',
      'profile: (7, 4) is no pair of steps: give the first and the last, such '
      'as (100,110), or () for none',
    ),
    (
      '(7,)',
      'profile: (7,) is no pair of steps: give the first and the last, such as'
      ' (100,110), or () for none',
    ),
    (
      '(7,40)',
      'profile: (7, 40) ends after the last step, which is steps=36',
    ),
  ],
)
def test_a_bad_pair_is_one_line(data, tmp_path, pair, text):
  with pytest.raises(config.ConfigError) as error:
    train.train(programs.make(data, profile=pair), tmp_path / 'run')
  assert str(error.value) == text
  assert not (tmp_path / 'run').exists()


def test_a_trace_that_fails_costs_a_warning(data, tmp_path, one_device, capfd):
  jax.profiler.start_trace(tmp_path / 'other')
  try:
    c = programs.make(data, steps=6, profile='(2,4)')
    train.train(c, tmp_path / 'run')
  finally:
    jax.profiler.stop_trace()
  assert 'lm: profile: there is none: ' in capfd.readouterr().err
  assert checkpoint.steps(tmp_path / 'run') == [6]
