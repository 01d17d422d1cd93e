"""The learning rate that is written is the one that is applied, at any step."""

from functools import partial
from typing import Any

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import optax
import pytest

from lm import checkpoint, train, types
from lm.models import linen
from lm.optim import optimizers, rules
from lm.reporting import metrics_log
from lm.training import step
from tests import programs

SHAPES = ('constant', 'cosine', 'linear', 'rsqrt', 'wsd')


def _update(tx: Any) -> Any:
  """Makes a step of one parameter, whose gradient is in the batch."""

  def apply(params, batch, *, cache=None, rng=None):
    del cache, rng
    return types.Output(params['w'] * batch.positions[0, 0], None, {})

  def loss(out, batch, head):
    del batch, head
    value = out.logits - jax.lax.stop_gradient(out.logits)
    return types.Metric(jnp.where(jnp.isfinite(value), value, 0), 1.0)

  model = types.Model(
    parameters=lambda batch: None, apply=apply, start=lambda *_: None, axes=()
  )
  key = jax.random.key(0)
  return jax.jit(
    partial(step.train_step, model=model, tx=tx, rng=key, loss=loss)
  )


def _batch(gradient: float) -> types.Batch:
  positions = np.full((1, 1), gradient, np.float32)
  return linen.example_batch(1, 1)._replace(positions=positions)


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data(), schedule=st.sampled_from(SHAPES))
def test_a_schedule_goes_by_steps(tmp_path_factory, data, schedule):
  steps = data.draw(st.integers(1, 8))
  settings: dict[str, Any] = {
    'schedule': schedule,
    'warmup': data.draw(st.integers(0, steps)),
    'final': data.draw(st.sampled_from([0.0, 0.1, 1.0])),
    'cooldown': data.draw(st.sampled_from(['linear', 'sqrt'])),
  }
  settings['decay_fraction'] = data.draw(
    st.floats(0.0, 1 - settings['warmup'] / steps).map(lambda x: 0.99 * x)
  )
  skipped = data.draw(st.sets(st.integers(0, steps - 1)))
  resumed = data.draw(st.sets(st.integers(1, steps), max_size=1))
  try:
    tx, written = optimizers.make(
      rule=rules.sgd(momentum=0.0),
      steps=steps,
      peak=1.0,
      clip=0.0,
      decay=0.0,
      **settings,
    )
  except ValueError as error:  # rounding made the cooldown one step too long
    assert 'the cooldown of' in str(error)
    return
  state = step.init_state({'w': jnp.zeros(())}, tx=tx)
  update = _update(tx)
  for n in range(steps):
    bad = n in skipped
    after, _ = update(state, _batch(np.nan if bad else 1.0))
    applied = float(state.params['w'] - after.params['w'])
    want = 0.0 if bad else np.asarray(written(n)).item()
    # The parameter is a sum of few rates, of which each is at most 1.
    assert applied == pytest.approx(want, abs=2e-6), n
    state = after
    if n + 1 in resumed:
      folder = tmp_path_factory.mktemp('run')
      checkpoint.save(folder, n + 1, state)
      place = SingleDeviceSharding(jax.devices()[0])
      like = jax.eval_shape(lambda x: x, state)
      state, _ = checkpoint.restore(folder, like, place)
  assert int(state.extra['skipped']) == len(skipped)


@pytest.mark.parametrize(
  'tx',
  [
    optax.sgd(optax.linear_schedule(1.0, 0.0, 4)),
    optax.chain(
      optax.scale_by_adam(b1=0.0, b2=0.0, eps=1e-30),
      optax.masked(
        optax.scale_by_learning_rate(optax.linear_schedule(1.0, 0.0, 4)),
        {'w': True},
      ),
    ),
  ],
)
def test_schedules_of_other_optimizers_go_by_steps_too(tx):
  state, update = step.init_state({'w': jnp.zeros(())}, tx=tx), _update(tx)
  found = []
  for gradient in (1.0, np.nan, np.nan, 1.0):
    state, _ = update(state, _batch(gradient))
    found.append(-float(state.params['w']))
  np.testing.assert_allclose(found, [1.0, 1.0, 1.0, 1.25], rtol=1e-6)


def test_a_run_with_warmup_and_rsqrt_writes_its_rates(
  data, tmp_path, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@1-2')
  c = programs.on_eight(
    data, steps=6, eval_every=0, optim__schedule='rsqrt', optim__peak=0.01
  )
  state = train.train(c, tmp_path / 'run')
  assert int(state.extra['skipped']) == 2
  assert int(state.opt_state['rate'].count) == 6
  assert int(state.opt_state['scale'].count) == 4  # of Adam's averages
  lines = metrics_log.read(tmp_path / 'run' / 'metrics.jsonl')
  rates = [x['learning_rate'] for x in lines if 'learning_rate' in x]
  want = [0.002, 0.004, 0.006, 0.008, 0.01, 0.01 * (4 / 5) ** 0.5]
  assert rates == pytest.approx(want, rel=1e-6)
