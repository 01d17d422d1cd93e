"""A run ends with its best checkpoint, also when it was killed on the way."""

import math
import shutil
import signal
import time

import pytest

from lm import checkpoint, config, train
from lm.checkpoint import manifest
from lm.reporting import metrics_log
from lm.training import early_stopping
from tests import programs

# Its loss falls all the time, so that by `higher` the first one is best.
SETTINGS = {
  'eval_every': 4,
  'save_every': 6,
  'keep': 2,
  'early.metric': 'valid/loss_nats',
  'early.higher': True,
  'early.patience': 3,
}


def judged(workdir):
  return early_stopping.read(
    config.from_json((workdir / 'config.json').read_text()), workdir
  )


@pytest.fixture(scope='module')
def ended(data, tmp_path_factory):
  """A run that was over after its fourth evaluation; do not change it."""
  workdir = tmp_path_factory.mktemp('ended') / 'run'
  c = programs.on_eight(data, **SETTINGS)
  state = train.train(c, workdir)
  assert int(state.step) == 4 and checkpoint.steps(workdir) == [4]
  return workdir


def test_a_run_that_is_over_ends_with_its_best(data, ended):
  found = judged(ended)
  assert [step for step, _ in found] == [4, 8, 12, 16]
  before = (ended / 'metrics.jsonl').read_bytes()
  state = train.train(programs.on_eight(data, **SETTINGS), ended)
  assert int(state.step) == 4
  assert (ended / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_more_patience_goes_on(data, ended, tmp_path):
  workdir = programs.rewind(ended, tmp_path / 'run', 4)
  c = programs.on_eight(data, **SETTINGS | {'early.patience': 5})
  assert int(train.train(c, workdir).step) == 4
  found = judged(workdir)
  assert [step for step, _ in found] == [4, 8, 12, 16, 20, 24]
  assert found[:4] == judged(ended)


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_can_be_the_last(data, tmp_path):
  long = SETTINGS | {'save_every': 4, 'keep': 20, 'early.metric': None}
  train.train(programs.on_eight(data, **long, steps=20), tmp_path / 'long')
  workdir = tmp_path / 'run'
  shutil.copytree(tmp_path / 'long', workdir)
  shutil.rmtree(manifest.directory(workdir, 20))
  lines = metrics_log.read(workdir / 'metrics.jsonl')
  (workdir / 'metrics.jsonl').unlink()
  for line in lines:
    if line['step'] < 16 or not any('/' in key for key in line):
      metrics_log.append(workdir / 'metrics.jsonl', line)
  short = programs.on_eight(data, **SETTINGS, steps=20)
  assert int(train.train(short, workdir).step) == 4
  assert [step for step, _ in judged(workdir)] == [4, 8, 12, 16]


@pytest.mark.slow
def test_a_loss_that_falls_ends_with_the_last_step(data, tmp_path):
  c = programs.on_eight(data, **SETTINGS | {'early.higher': False, 'steps': 18})
  assert int(train.train(c, tmp_path).step) == 18
  assert [step for step, _ in judged(tmp_path)] == [4, 8, 12, 16, 18]


@pytest.mark.parametrize('at', [4, 12, 16])
def test_a_kill_changes_nothing(data, start, tmp_path, ended, at):
  def seen(workdir, step):
    lines = metrics_log.read(workdir / 'metrics.jsonl')
    return any(x['step'] == step and 'valid/loss_nats' in x for x in lines)

  # The second evaluator is slow: the kill lands in it.
  slow = SETTINGS | {'evals.pause.seconds': 0.3, 'mesh.data': 1}
  workdir = tmp_path / 'run'
  process = start('train', programs.flags(data, workdir, **slow))
  process.wait_for(lambda: seen(workdir, at))
  process.send(9)
  process.wait()
  assert start('train', programs.flags(data, workdir, **slow)).wait() == 0
  assert checkpoint.steps(workdir) == [4]
  lines = [
    (line['step'], key)
    for line in metrics_log.read(workdir / 'metrics.jsonl')
    for key in line
    if key in ('valid/loss_nats', 'pause/tables')
  ]
  assert sorted(lines) == sorted({*lines}) and len(lines) >= 7
  assert [step for step, _ in judged(workdir)] == [4, 8, 12, 16]
  assert [value for _, value in judged(workdir)] == pytest.approx(
    [value for _, value in judged(ended)], rel=1e-5
  )


def test_a_stop_leaves_its_evaluations_to_what_resumes(data, start, tmp_path):
  settings = {'eval_every': 1, 'steps': 12, 'evals.pause.seconds': 0.2}
  workdir = tmp_path / 'run'

  def judged_steps():
    lines = metrics_log.read(workdir / 'metrics.jsonl')
    return [line['step'] for line in lines if 'pause/tables' in line]

  process = start('train', programs.flags(data, workdir, **settings))
  process.wait_for(lambda: len(judged_steps()) > 1)
  process.send(signal.SIGTERM)
  assert process.wait() == 143, process.text()
  (last,) = checkpoint.steps(workdir)[-1:]
  # One of the last step's evaluators may have been done.
  assert judged_steps() in ([*range(1, last)], [*range(1, last + 1)])
  assert start('train', programs.flags(data, workdir, **settings)).wait() == 0
  assert judged_steps() == [*range(1, 13)]


@pytest.mark.parametrize('resumed', [False, True])
def test_a_stop_does_not_wait_for_an_evaluation(data, start, tmp_path, resumed):
  """Nor is what was computed since the last save lost to its deadline."""
  settings = {'eval_every': 3, 'steps': 6, 'save_every': 6, 'mesh.data': 1}
  settings |= {'save_every': 3} if resumed else {}
  slow = settings | {'evals.pause.seconds': 600.0}
  workdir = tmp_path / 'run'

  process = start('train', programs.flags(data, workdir, **slow))
  # The line of step 2 is written after step 3.
  process.wait_for(lambda: len(programs.losses(workdir)) >= 2)
  if resumed:
    process.wait_for(lambda: checkpoint.steps(workdir) == [3])
    process.send(9)
    process.wait()
    process = start('train', programs.flags(data, workdir, **slow))
    process.wait_for(lambda: 'step 3 of' in process.text())
  time.sleep(1)
  process.send(signal.SIGTERM)
  before = time.monotonic()
  assert 'by a signal at step 3, which is saved' in process.error(143)
  assert time.monotonic() - before < 20  # and not by the deadline
  assert checkpoint.steps(workdir) == [3]
  assert start('train', programs.flags(data, workdir, **settings)).wait() == 0
  lines = metrics_log.read(workdir / 'metrics.jsonl')
  assert [x['step'] for x in lines if 'pause/tables' in x] == [3, 6]
  assert [x['step'] for x in lines if 'valid/loss_nats' in x] == [3, 6]


def test_what_was_found_is_judged():
  def judge(values, **changes):
    c = config.load(f'{programs.ROOT}/configs/base.py', changes.items())
    found = [(n, x) for n, x in enumerate(values, 1)]
    return early_stopping.decide(c, found), early_stopping.end(
      c, found, range(9)
    )

  assert judge([]) == ((None, False), None)
  assert judge([3.0, 2.0, 2.0, 4.0]) == ((2, False), None)
  assert judge([3.0, 2.0, 2.0, math.nan, 5.0]) == ((2, True), 2)
  assert judge([3.0, 2.0, 4.0], steps='3')[1] == 2
  assert judge([math.nan] * 9)[0] == (None, False)
  assert judge([1.0, 2.0, 2.0, 1.0, 0.0], **{'early.higher': 'True'}) == (
    (2, True),
    2,
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'eval_every': 0}, 'needs evaluations in training: set eval_every'),
    (
      {'early.metric': 'dev/f1'},
      'dev/f1 is of no evaluator: begin with one of',
    ),
    ({'early.metric': 'valid/f1'}, 'valid finds no f1, but loss_nats'),
    ({'early.patience': 0}, 'early.patience: 0 must be an int'),
  ],
)
def test_what_cannot_be_judged_is_refused(data, tmp_path, changes, message):
  with pytest.raises(config.ConfigError) as caught:
    train.train(programs.on_eight(data, **SETTINGS | changes), tmp_path)
  assert message in str(caught.value) and len(str(caught.value)) <= 200


def test_a_bucket_keeps_no_best(data):
  c = programs.on_eight(data, **SETTINGS)
  with pytest.raises(config.ConfigError) as caught:
    train.train(c, 'gs://bucket/run')
  assert 'keeps the newest steps alone, not the best' in str(caught.value)
