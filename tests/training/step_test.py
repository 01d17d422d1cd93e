from functools import partial

import jax
import numpy as np
import optax
import pytest

from configs import base
from lm import config, sharding, tree
from lm.models import linen
from lm.optim import optimizers, rules
from lm.training import program as program_lib
from lm.training import step

MODEL = config.build(base.decoder(2, length=8, width=16, depth=1), vocab=16)
TX = optax.adamw(1e-2)


def batch(seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, 16, (4, 9)).astype(np.int32)
  return linen.example_batch(4, 8)._replace(
    tokens=ids[:, :-1], targets=ids[:, 1:]
  )


@pytest.fixture
def state():
  return step.init_state(MODEL.init(0, batch()), tx=TX)


def updater(**kw):
  return jax.jit(
    partial(step.train_step, model=MODEL, tx=TX, rng=jax.random.key(1), **kw)
  )


def same(a, b):
  return all(
    np.array_equal(x, y)
    for (_, x), (_, y) in zip(tree.paths(a), tree.paths(b), strict=True)
  )


@pytest.mark.slow
@pytest.mark.parametrize('microbatches', [1, 2])
def test_a_nan_gradient_changes_nothing_but_is_counted(
  state, monkeypatch, microbatches
):
  monkeypatch.setenv('FAULT', 'nan_grad@1')
  update = updater(microbatches=microbatches)
  first, metrics = update(state, batch(0))
  assert float(metrics['skipped'].total) == 0 and not same(
    first.params, state.params
  )
  second, metrics = update(first, batch(1))
  assert float(metrics['skipped'].total) == 1
  assert same(second.params, first.params)
  assert same(second.opt_state, first.opt_state)
  assert int(second.step) == 2 and int(second.extra['skipped']) == 1
  third, metrics = update(second, batch(2))
  assert not same(third.params, second.params)
  assert int(third.extra['skipped']) == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(third))


def test_an_infinite_loss_is_dropped(state):
  def bad(out, batch, head):
    metric = step.DEFAULT(out, batch, head)
    return metric._replace(total=metric.total + np.inf)

  after, metrics = updater(loss=bad)(state, batch())
  assert same(after.params, state.params)
  assert float(metrics['skipped'].total) == 1


def test_a_batch_without_weight_has_no_gradient(state):
  empty = batch()._replace(weights=np.zeros((4, 8), np.float32))
  after, metrics = updater()(state, empty)
  assert float(metrics['grad_norm'].total) == 0
  assert float(metrics['loss_nats'].weight) == 0
  assert int(after.extra['skipped']) == 0


@pytest.mark.slow
def test_what_is_frozen_costs_no_gradient():
  held = '^(embed|layers)'
  tx, _ = optimizers.make(
    rule=rules.sgd(), steps=9, peak=1.0, decay_mask='', freeze=held
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  table = base.get_config().sharding
  found = []
  for freeze in ('', held):
    run = program_lib.make(
      model=MODEL,
      tx=tx,
      example=batch(),
      mesh=mesh,
      rules=table,
      seed=0,
      settings=program_lib.Settings(freeze=freeze),
    )
    count = program_lib.lower(run).compile().cost_analysis()['flops']
    with jax.set_mesh(mesh):
      after, metrics = run.update(program_lib.start(run), batch())
    found.append((count, after.params, float(metrics['grad_norm'].total)))
  (whole, want, norm), (count, got, less) = found
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), got, want)
  assert count < 0.6 * whole and 0 < less < 0.9 * norm


def test_metrics_of_one_step_are_golden(state):
  """If this fails, numbers of every run change: say so in CHANGELOG.md.

  Show before and after (see CONTRIBUTING.md, proof of value), then put in the
  new figures.
  """
  _, metrics = updater()(state, batch())
  got = {k: float(m.total / m.weight) for k, m in metrics.items()}
  assert got == pytest.approx(GOLDEN, rel=2e-4)


GOLDEN = {'loss_nats': 2.779162, 'grad_norm': 1.236669, 'skipped': 0.0}
