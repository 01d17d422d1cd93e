"""Averages of parameters: steps by hand, and what a run with one is used by."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, evaluate, train, tree, types
from lm.optim import averages, optimizers, schedules
from tests import programs

PLAIN: dict[str, Any] = {
  'rule': {'fn': 'lm.optim.rules:sgd', 'momentum': 0.0},
  'steps': 6,
  'peak': 0.5,
  'schedule': 'constant',
  'clip': 0.0,
  'decay': 0.0,
}


def made_tx(**changes: Any) -> Any:
  settings: dict[str, Any] = PLAIN | changes
  return optimizers.make(**settings)[0]


def taken(gradients, dropped=(), start=4.0, **settings):
  """Takes steps as a run does; returns parameters and averages after each."""
  tx = made_tx(**settings)
  params = {'w': jnp.asarray([start], jnp.float32)}
  state, rows = tx.init(params), []
  for step, gradient in enumerate(gradients):
    state = schedules.at_step(state, step)
    if step not in dropped:
      updates, state = tx.update(
        {'w': jnp.asarray([gradient], jnp.float32)}, state, params
      )
      params = jax.tree.map(jnp.add, params, updates)
    rows.append((float(params['w'][0]), float(state['average']['w'][0])))
  return rows


def test_an_average_that_forgets_by_hand():
  # 4 - 0.5 * g: 3, 2, 4, 4. Weights of the newest: 1, 1/2, 2/5, 2/5.
  rows = taken([2, 2, -4, 0], average='ema', ema_decay=0.6)
  want = [(3, 3), (2, 2.5), (4, 2.5 + 0.4 * 1.5), (4, 3.1 + 0.4 * 0.9)]
  np.testing.assert_allclose(rows, want, rtol=1e-6)


def test_a_decay_of_one_is_the_plain_mean():
  rows = taken([2, 2, -4, 0], average='ema', ema_decay=1.0)
  assert [x for _, x in rows] == pytest.approx([3, 2.5, 3, 3.25])


@pytest.mark.parametrize('tail', [3, 0.5])
def test_the_mean_of_the_last_steps_by_hand(tail):
  rows = taken([2, 2, -4, 0, 2, 4], average='tail', tail=tail)
  # 3, 2, 4, and then the mean of 4, 3 and 1.
  assert [x for _, x in rows] == pytest.approx([3, 2, 4, 4, 3.5, 8 / 3])


def test_a_dropped_update_counts_for_nothing():
  rows = taken([2, 9, 2, -4], dropped=[1], average='ema', ema_decay=1.0)
  assert [x for _, x in rows] == pytest.approx([3, 3, 2.5, 3])
  # And the tail begins at its step of the run all the same.
  rows = taken([2, 9, 2, -4], dropped=[1], average='tail', tail=3)
  assert [x for _, x in rows] == pytest.approx([3, 3, 2, 4])


def test_schedule_free_by_hand():
  # A warmup of one step: rates 0.25 and then 0.5, squares 1/16 and 1/4.
  rows = taken(
    [4, 4, -2], average='schedule_free', interpolation=0.75, warmup=1
  )
  z, x, total, want = 4.0, 4.0, 0.0, []
  for rate, gradient in ((0.25, 4), (0.5, 4), (0.5, -2)):
    z -= rate * gradient
    total += rate**2
    x += rate**2 / total * (z - x)
    want.append((0.25 * z + 0.75 * x, x))
  assert want[0] == (3, 3)
  assert want[1][1] == pytest.approx(0.2 * 3 + 0.8 * 1)
  np.testing.assert_allclose(rows, want, rtol=1e-6)


def test_schedule_free_finds_a_noisy_minimum_without_a_schedule():
  rng = np.random.default_rng(0)
  tx = made_tx(steps=400, average='schedule_free')
  target = jnp.asarray(rng.normal(size=50), jnp.float32)
  params = {'w': jnp.zeros(50)}
  state = tx.init(params)
  step = jax.jit(tx.update)
  for noise in rng.normal(size=(400, 50)):
    gradient = {'w': params['w'] - target + jnp.asarray(noise, jnp.float32)}
    updates, state = step(gradient, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  of_x = float(jnp.mean((state['average']['w'] - target) ** 2))
  of_z = float(jnp.mean((state['iterate']['w'] - target) ** 2))
  assert of_x < 0.1 * of_z


def test_what_is_frozen_has_no_average():
  tx = made_tx(average='ema', freeze='^body/')
  params = {'body': {'w': jnp.ones(2)}, 'head': {'w': jnp.ones(2)}}
  state = tx.init(params)
  assert list(state['average']) == ['head/w']
  _, state = tx.update(params, state, params)
  found: Any = averages.of(made_state(params, state))
  assert found['body']['w'].tolist() == [1, 1]
  assert found['head']['w'].tolist() == [0.5, 0.5]


def made_state(params, opt_state):
  return types.TrainState(jnp.int32(1), params, opt_state, {})


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_an_average_is_float32_and_is_used_in_the_type_of_parameters(dtype):
  tx = made_tx(average='ema')
  params = {'w': jnp.ones(2, dtype)}
  state = tx.init(params)
  assert state['average']['w'].dtype == jnp.float32
  used: Any = averages.of(made_state(params, state))
  assert used['w'].dtype == dtype


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'average': 'swa'}, "optim.average='swa': use ema, tail or schedule_free"),
    ({'average': 'ema', 'ema_decay': 1.5}, 'optim.ema_decay=1.5: give'),
    ({'average': 'tail', 'tail': 7}, 'optim.tail=7: give a number from 0 to 6'),
    ({'average': 'tail', 'tail': 2.5}, 'optim.tail=2.5: give a whole number'),
    (
      {'average': 'schedule_free', 'schedule': 'cosine'},
      "takes the place of optim.schedule='cosine'",
    ),
    (
      {
        'average': 'schedule_free',
        'rule': {'fn': 'lm.optim.rules:adamw'},
      },
      'takes the place of momentum, and the rule has 0.9',
    ),
    (
      {'average': 'schedule_free', 'sphere': 'matrix', 'matrices': ()},
      'leaves the sphere',
    ),
    (
      {'average': 'schedule_free', 'interpolation': -0.1},
      'optim.interpolation=-0.1',
    ),
  ],
)
def test_bad_settings_are_named(change, line):
  with pytest.raises(ValueError, match=line.replace('(', r'\(')):
    made_tx(**change)


def made(folder, **changes):
  settings = {'steps': 6, 'save_every': 3, 'eval_every': 3} | changes
  c = programs.on_eight(folder, **settings).unlock()
  c.optim = {
    'fn': 'lm.optim.optimizers:make',
    'peak': 0.03,
    'average': 'ema',
    'ema_decay': 0.9,
  }
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  return c.lock()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('averaged')
  programs.write_data(folder)
  state = train.train(made(folder), folder / 'run')
  return folder, state


def test_all_that_reads_a_run_reads_its_averages(trained):
  folder, state = trained
  workdir = folder / 'run'
  read = dict(tree.paths(checkpoint.restore_params(workdir, 6)))
  raw = dict(tree.paths(checkpoint.restore_params(workdir, 6, averaged=False)))
  averaged = dict(tree.paths(averages.of(state)))
  trained_ = dict(tree.paths(state.params))
  assert read.keys() == raw.keys() == averaged.keys()
  for path, leaf in read.items():
    np.testing.assert_array_equal(leaf, averaged[path], path)
    np.testing.assert_array_equal(raw[path], trained_[path], path)
  assert any((read[path] != raw[path]).any() for path in read)
  # Evaluated while it trains, and once more from each checkpoint.
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  during = {
    row['step']: row['valid/loss_nats']
    for row in map(json.loads, lines)
    if 'valid/loss_nats' in row
  }
  after = {
    row['step']: row['metrics']['valid/loss_nats']
    for row in evaluate.evaluate(workdir)
  }
  assert during.keys() == after.keys() == {3, 6}
  for step, loss in during.items():
    assert loss == pytest.approx(after[step], rel=1e-6)


def test_a_new_run_starts_from_the_averages(trained, tmp_path):
  folder, _ = trained
  c = made(folder, steps=2, eval_every=2).unlock()
  c.init_from = str(folder / 'run')
  c.optim.peak = 1e-12
  train.train(c.lock(), tmp_path / 'next')
  start = checkpoint.restore_params(folder / 'run', 6)
  found = checkpoint.restore_params(tmp_path / 'next', 2)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, start
  )
