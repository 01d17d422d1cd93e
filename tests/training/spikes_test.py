"""An update whose gradient is far too long is dropped, counted and no more."""

import re

import numpy as np
import pytest

from lm import checkpoint, train
from lm.reporting import metrics_log
from tests import programs

STEPS = 112


@pytest.fixture
def spiky(data, monkeypatch):
  """Makes configs of a run with a spike before and one after 100 updates."""
  monkeypatch.setenv('FAULT', 'spike_grad@50,spike_grad@104')

  def make(**changes):
    return programs.on_eight(
      data, **{'steps': STEPS, 'save_every': 52, **changes}
    )

  return make


def skipped(workdir):
  """Lists the steps whose update was dropped."""
  lines = metrics_log.read(workdir / 'metrics.jsonl')
  return [x['step'] for x in lines if x.get('skipped')]


def test_a_spike_is_dropped_and_counted(spiky, tmp_path):
  state = train.train(spiky(optim__spike_factor=20.0), tmp_path / 'run')
  # The first one comes before there is a median to compare with.
  assert skipped(tmp_path / 'run') == [105]
  assert int(state.extra['skipped']) == 1
  assert all(np.isfinite(x) for _, x in programs.losses(tmp_path / 'run'))


def test_it_is_dropped_alike_where_the_run_is_resumed(spiky, tmp_path):
  c = spiky(optim__spike_factor=20.0)
  train.train(c, tmp_path / 'run')
  again = programs.rewind(tmp_path / 'run', tmp_path / 'again', 52)
  train.train(c, again)
  want = checkpoint.digest(tmp_path / 'run', STEPS)
  assert checkpoint.digest(again, STEPS) == want


def test_without_the_setting_it_is_clipped_and_applied(spiky, tmp_path):
  train.train(spiky(), tmp_path / 'run')
  assert skipped(tmp_path / 'run') == []


@pytest.mark.parametrize('factor', [0.5, -1.0])
def test_a_factor_that_drops_half_of_all_updates_is_refused(
  data, tmp_path, factor
):
  with pytest.raises(ValueError, match='spike_factor') as error:
    train.train(
      programs.on_eight(data, optim__spike_factor=factor), tmp_path / 'run'
    )
  assert re.match(r'.*spike_factor', str(error.value))
