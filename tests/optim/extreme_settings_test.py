"""No setting of an optimizer, however odd, puts nan into a run's parameters.

Either it is refused when the optimizer is built, or each of its updates leaves
a finite state, or the update is dropped and counted. Settings are read off the
signatures, so that a new rule or setting is tried too.
"""

from functools import partial
import inspect
from typing import Any

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree, types
from lm.models import linen
from lm.optim import optimizers, rules, schedules
from lm.training import step

RULES = (
  *('adamw', 'sgd', 'lion', 'adafactor', 'muon', 'normuon', 'soap'),
  'soap_muon',
)
MATRICES = ((r'attention/q$', 1, 2), (r'mlp/up$', 1, 1))
# What divides by 0, rounds to 0 or to 1, overflows when multiplied, or is no
# number at all.
ODD = (
  *(0.0, 1e-45, 1e-38, 1e-30, 1e-12, 0.5, 1 - 1e-9, 1.0, 1e12, 1e20, 3e38),
  *(1e39, float('inf'), float('nan'), -1e-3, -1e30),
)
SCALES = (0.0, 1e-42, 1e-30, 1.0, 1e12, 1e18)


def _params(seed: int, scale: float) -> Any:
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

  return {
    'layers_0': {
      'attention': {'q': draw(4, 2, 2)},
      'mlp': {'up': draw(4, 6), 'up_bias': draw(6)},
    },
    'embed': {'table': draw(5, 4).at[0].set(0.0)},  # a token never seen
  }


def _numbers(function: Any) -> list[str]:
  """Lists the settings of a function that are floating-point numbers."""
  return [
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.annotation in (float, 'float')
  ]


def _update(tx: Any) -> Any:
  """Makes a jitted training step; its batch holds the size of its gradient."""
  gradient = _params(1, 1.0)

  def apply(params, batch, *, cache=None, rng=None):
    del cache, rng
    total = sum(
      jnp.sum(w * g * batch.positions[0, 0])
      for w, g in zip(
        jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True
      )
    )
    return types.Output(total, None, {})

  def loss(out, batch, head):
    del head
    # As a mean would, it has the gradient alone; its value is of no interest.
    value = out.logits - jax.lax.stop_gradient(out.logits)
    weight = jnp.sum(batch.weights)
    return types.Metric(
      jnp.where(jnp.isfinite(value), value, 0) * weight, weight
    )

  model = types.Model(
    parameters=lambda batch: None, apply=apply, start=lambda *_: None, axes=()
  )
  return jax.jit(
    partial(
      step.train_step, model=model, tx=tx, rng=jax.random.key(0), loss=loss
    )
  )


def _bits(state: Any) -> list[bytes]:
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def _check(
  name: str,
  own: dict[str, Any],
  shared: dict[str, Any],
  weights: float,
  gradients: list[float],
) -> list[bool]:
  """Trains, checks every step, and returns which updates were applied."""
  keys = inspect.signature(getattr(rules, name)).parameters
  needed = {'matrices': MATRICES, 'adam_peak': 1e-3}
  own = {key: x for key, x in needed.items() if key in keys} | own
  try:
    tx, _ = optimizers.make(
      rule=getattr(rules, name)(**own),
      **({'steps': 10, 'peak': 1e-2, 'warmup': 1} | shared),
    )
  except ValueError as error:
    text = str(error)
    assert text.startswith('optim.') and len(text) <= 200 and '\n' not in text
    return []
  state = jax.jit(partial(step.init_state, tx=tx))(_params(0, weights))
  applied = []
  update = _update(tx)
  for scale in gradients:
    batch = linen.example_batch(1, 1)
    batch = batch._replace(positions=np.full((1, 1), scale, np.float32))
    after, metrics = update(state, batch)
    for path, leaf in tree.paths((after.params, after.opt_state)):
      assert np.isfinite(np.asarray(leaf, np.float64)).all(), path
    applied.append(not float(metrics['skipped'].total))
    assert int(after.extra['skipped']) == applied.count(False)
    if not applied[-1]:
      assert _bits(after.params) == _bits(state.params)
      # All but the learning rate stands still.
      assert _bits(schedules.at_step(after.opt_state, 0)) == _bits(
        schedules.at_step(state.opt_state, 0)
      )
    state = after
  return applied


@pytest.mark.parametrize(
  ('name', 'own', 'shared', 'gradients', 'applied'),
  [
    ('adamw', {}, {}, [1.0, 0.0], [True, True]),
    # The gradient is finite, and what becomes of it is not.
    ('sgd', {}, {'peak': 3e38, 'clip': 0.0}, [1e3], [False]),
    ('sgd', {'momentum': 0.0}, {'decay': 3e38, 'peak': 10.0}, [1.0], [False]),
    # Only the second moment overflows: the parameters would look right.
    ('adamw', {}, {'l2': 1e30}, [1.0], [False]),
  ],
)
def test_what_overflows_is_dropped(name, own, shared, gradients, applied):
  assert _check(name, own, shared, 1.0, gradients) == applied


@pytest.mark.parametrize('name', ['muon', 'normuon', 'soap_muon'])
def test_a_ratio_of_rates_that_overflows_is_refused(name):
  assert _check(name, {'adam_peak': 3e38}, {}, 1.0, [1.0]) == []


@pytest.mark.slow
@pytest.mark.parametrize('name', RULES)
@hypothesis.settings(max_examples=12)
@hypothesis.given(data=st.data())
def test_no_setting_makes_an_applied_update_that_is_not_finite(name, data):
  # A few at a time: of many, one is nearly always refused.
  own, shared = (
    st.dictionaries(
      st.sampled_from(_numbers(function)), st.sampled_from(ODD), max_size=2
    )
    for function in (getattr(rules, name), optimizers.make)
  )
  sizes = st.sampled_from(SCALES)
  _check(
    name,
    data.draw(own),
    data.draw(shared),
    data.draw(sizes),
    data.draw(st.lists(sizes, min_size=2, max_size=2)),
  )
