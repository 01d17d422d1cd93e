"""A run that is stuck goes back, the same way however often it is killed."""

import numpy as np
import pytest

from lm import checkpoint, errors, train
from lm.reporting import metrics_log
from tests import programs

STEPS = 30


@pytest.fixture
def stuck(data, monkeypatch):
  """Makes configs of a run whose updates to the steps 15 to 19 are dropped."""
  monkeypatch.setenv('FAULT', 'nan_grad@14-18')

  def make(**changes):
    return programs.on_eight(
      data, **{'steps': STEPS, 'max_skipped': 3, **changes}
    )

  return make


def left_out(workdir, step=STEPS):
  return checkpoint.read_meta(workdir, step)['dropped']['left_out']


def test_a_stuck_run_goes_back_and_leaves_batches_out(stuck, tmp_path):
  state = train.train(stuck(), tmp_path / 'run')
  # The fourth dropped update in a row leads to step 18; step 12 is saved.
  assert left_out(tmp_path / 'run') == [[12, 18]]
  # The update to step 19 is dropped by itself.
  assert int(state.extra['skipped']) == 7
  lines = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  assert [x for x in lines if 'rollback/to' in x] == [
    {'step': 18, 'rollback/to': 12}
  ]
  assert [n for n, _ in programs.losses(tmp_path / 'run')] == [
    *range(1, STEPS + 1)
  ]
  assert all(np.isfinite(x) for _, x in programs.losses(tmp_path / 'run')[20:])


def test_the_update_after_the_fault_is_not_counted(stuck, tmp_path):
  # A fault is seen one step late, unless a step is saved there.
  c = stuck(max_skipped=2, steps=24, save_every=7)
  train.train(c, tmp_path / 'run')
  # The update to step 17 is the third; those to 18 and 19 are two again.
  assert left_out(tmp_path / 'run', 24) == [[14, 17]]
  about = checkpoint.read_meta(tmp_path / 'run', 17)['dropped']
  assert about == {'in_a_row': 0, 'left_out': [[14, 17]]}
  assert [n for n, _ in programs.losses(tmp_path / 'run')] == [*range(1, 25)]


def test_a_run_that_goes_back_is_evaluated_where_it_should(
  data, tmp_path, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@21-23')
  changes = {'eval_every': 6, 'early__metric': 'valid/loss_nats'}
  c = programs.on_eight(data, steps=24, max_skipped=2, **changes)
  first = int(train.train(c, tmp_path / 'run').step)
  assert int(train.train(c, tmp_path / 'run').step) == first
  lines = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  judged = [x['step'] for x in lines if 'valid/loss_nats' in x]
  assert judged == [6, 12, 18, 24]


@pytest.mark.parametrize('every', [6, 1])
def test_what_is_resumed_goes_back_alike(stuck, tmp_path, every):
  c = stuck(save_every=every, keep=40)
  train.train(c, tmp_path / 'run')
  want = checkpoint.digest(tmp_path / 'run', STEPS)
  # With a step saved at each update, the run is resumed amid dropped ones too.
  for step in (12, 18, 24) if every == 6 else (14, 15, 17, 18, 19, 20):
    again = programs.rewind(tmp_path / 'run', tmp_path / str(step), step)
    train.train(c, again)
    assert checkpoint.digest(again, STEPS) == want, step
    assert left_out(again) == [[12 if every == 6 else 14, 18]]
    assert programs.losses(again) == programs.losses(tmp_path / 'run')


def test_the_step_to_go_back_to_is_kept(stuck, tmp_path):
  # Two newer steps are saved while updates are dropped.
  train.train(stuck(save_every=1, keep=2), tmp_path / 'run')
  assert left_out(tmp_path / 'run') == [[14, 18]]


def test_without_a_checkpoint_the_run_ends(stuck, tmp_path):
  with pytest.raises(errors.NotFinite) as error:
    train.train(stuck(save_every=20), tmp_path / 'run')
  assert str(error.value) == (
    'step 18: 4 updates in a row were dropped, and no checkpoint is from '
    'before them; lower optim.peak or look at the data'
  )
  assert checkpoint.steps(tmp_path / 'run') == []


def test_a_run_that_has_learnt_nothing_does_not_end_well(
  data, tmp_path, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@0-100')
  with pytest.raises(errors.NotFinite) as error:
    train.train(programs.on_eight(data, steps=6), tmp_path / 'run')
  assert str(error.value) == (
    'step 6: all updates were dropped, so that nothing was learnt; lower '
    'optim.peak or look at the data'
  )


def test_no_rollback_is_allowed(stuck, tmp_path):
  with pytest.raises(errors.NotFinite) as error:
    train.train(stuck(max_rollbacks=0), tmp_path / 'run')
  assert str(error.value) == (
    'step 18: 4 updates in a row were dropped, after 0 rollbacks of '
    'max_rollbacks=0; lower optim.peak or look at the data'
  )
  assert checkpoint.steps(tmp_path / 'run') == [6, 12]


def test_checkpoints_count_dropped_updates(stuck, tmp_path):
  train.train(stuck(save_every=1, keep=40), tmp_path / 'run')
  counts = {
    step: checkpoint.read_meta(tmp_path / 'run', step)['dropped']['in_a_row']
    for step in range(12, 22)
  }
  assert counts == dict(
    zip(range(12, 22), (0, 0, 0, 1, 2, 3, 0, 1, 0, 0), strict=True)
  )
