"""The numbers of an optimizer are arguments, and the rest is the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.optim import numbers, optimizers, rules

MATRICES = (('q$', 1, 1),)
PARAMS = {
  'layers': {
    '0': {
      'q': np.full((2, 4, 6), 0.5, np.float32),
      'scale': np.ones((2, 4), np.float32),
    }
  },
  'embed': {'table': np.full((5, 4), -0.25, np.float32)},
}
GRADS = jax.tree.map(
  lambda w: np.cos(np.arange(w.size, dtype=np.float32)).reshape(w.shape),
  PARAMS,
)


def made(**changes):
  settings = {'steps': 50, 'peak': 1e-2, 'warmup': 4} | changes
  return optimizers.make(**settings)[0]


def taken(tx):
  like = jax.eval_shape(lambda: PARAMS)
  return numbers.take(tx, like, jax.eval_shape(tx.init, like))


def updates(tx, count=3):
  """Takes a few updates; returns the last one and the state."""
  state, new = tx.init(PARAMS), None
  if isinstance(tx, numbers.Optimizer):
    # As a program does: numbers are arguments of what is compiled.
    compiled = jax.jit(lambda tx, *x: tx.update(*x))
    update = partial(compiled, tx)
  else:
    update = jax.jit(tx.update)
  for _ in range(count):
    new, state = update(GRADS, state, PARAMS)
  return new, state


def test_more_parameters_have_no_more_numbers():
  many = {f'layers_{n}': PARAMS['layers']['0'] for n in range(9)}
  like = jax.eval_shape(lambda: many)
  tx = made()
  found, _ = numbers.take(tx, like, jax.eval_shape(tx.init, like))
  own, _ = taken(tx)
  assert len(found.floats) == len(own.floats) < 20


def own_rule(*, beta: float = 0.5, power: float = 0.25) -> rules.Rule:
  """A researcher's rule: checks and computes in Python, and knows nothing."""
  if not 0 < beta < 1:
    raise ValueError(f'beta={beta}')
  gain = (1 - beta) ** power

  def update(updates, state, params=None):
    del params
    state = jax.tree.map(lambda m, g: beta * m + gain * g, state, updates)
    return jax.tree.map(
      lambda m: jnp.sign(m) * jnp.abs(m) ** power, state
    ), state

  return rules.Rule(
    optax.GradientTransformation(
      lambda params: jax.tree.map(jnp.zeros_like, params), update
    )
  )


RULES = {
  'adamw': (
    {'fn': 'lm.optim.rules:adamw'},
    {'b1': 0.8, 'b2': 0.9, 'eps': 1e-6},
  ),
  'sgd': ({'fn': 'lm.optim.rules:sgd'}, {'momentum': 0.5}),
  'lion': (
    {'fn': 'lm.optim.rules:lion', 'moment_dtype': 'bfloat16'},
    {'b1': 0.5, 'b2': 0.75},
  ),
  'adafactor': (
    {'fn': 'lm.optim.rules:adafactor', 'matrices': MATRICES, 'size': 2},
    {'power': 0.7, 'eps': 1e-20},
  ),
  'muon': (
    {'fn': 'lm.optim.rules:muon', 'matrices': MATRICES, 'adam_peak': 1e-3},
    {'adam_peak': 3e-3, 'momentum': 0.8, 'update_rms': 0.3},
  ),
  'normuon': (
    {'fn': 'lm.optim.rules:normuon', 'matrices': MATRICES, 'adam_peak': 1e-3},
    {'momentum': 0.8, 'neuron_b2': 0.7, 'update_rms': 0.3},
  ),
  'soap': (
    {'fn': 'lm.optim.rules:soap', 'matrices': MATRICES},
    {'b1': 0.8, 'b2': 0.9, 'eps': 1e-6, 'shampoo_beta': 0.7, 'every': 2},
  ),
  'soap_muon': (
    {'fn': 'lm.optim.rules:soap_muon', 'matrices': MATRICES, 'adam_peak': 1e-3},
    {'momentum': 0.8, 'shampoo_beta': 0.7, 'every': 2},
  ),
  'own': ({'fn': 'tests.optim.numbers_test:own_rule'}, {'beta': 0.75}),
}


@pytest.mark.parametrize('name', RULES)
def test_an_optimizer_with_the_numbers_of_another_is_the_other(name):
  """A failure means that a run of a sweep trains with another run's numbers."""
  spec, changes = RULES[name]
  first = made(rule=spec, clip=0.5, l2=0.3, l1=0.2)
  other = made(
    rule=spec | changes,
    **{'steps': 70, 'peak': 3e-2, 'warmup': 7, 'decay': 0.3, 'final': 0.0},
    **{'clip': 0.7, 'l2': 0.4, 'l1': 0.6},
  )
  (own, structure), (given, same) = taken(first), taken(other)
  assert structure == same
  assert [x.shape for x in own] == [x.shape for x in given]
  assert any((x != y).any() for x, y in zip(own, given, strict=True))
  want, got = updates(other), updates(numbers.Optimizer(first, given))
  assert jax.tree.structure(want) == jax.tree.structure(got)
  for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-5
    )
  wrong = jax.tree.leaves(updates(first))
  assert any(
    (np.asarray(x) != np.asarray(y)).any()
    for x, y in zip(wrong, jax.tree.leaves(got), strict=True)
  )


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'rsqrt', 'wsd'])
def test_the_numbers_of_a_schedule_are_arguments(schedule):
  settings = {'schedule': schedule, 'final': 0.1}
  first = made(**settings)
  other = made(**settings, steps=90, peak=0.3, warmup=9)
  (_, structure), (given, same) = taken(first), taken(other)
  assert structure == same
  want, got = updates(other, 12), updates(numbers.Optimizer(first, given), 12)
  for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)


def test_layer_decay_is_an_argument():
  """Blocks of a stack and single ones have their rates from it."""
  first, other = made(layer_decay=0.5), made(layer_decay=0.9)
  (own, structure), (given, same) = taken(first), taken(other)
  assert structure == same and (own.floats != given.floats).any()
  want, got = updates(other), updates(numbers.Optimizer(first, given))
  for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize(
  ('average', 'change'),
  [
    ({'average': 'ema'}, {'ema_decay': 0.5}),
    ({'average': 'tail'}, {'tail': 0.75}),
    (
      {
        'average': 'schedule_free',
        'schedule': 'constant',
        'rule': {'fn': 'lm.optim.rules:sgd', 'momentum': 0.0},
      },
      {'interpolation': 0.5},
    ),
  ],
  ids=str,
)
def test_the_numbers_of_an_average_are_arguments(average, change):
  first, other = made(**average), made(**average, **change)
  (_, structure), (given, same) = taken(first), taken(other)
  assert structure == same
  want = updates(other, 20)
  got = updates(numbers.Optimizer(first, given), 20)
  for x, y in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize(
  'change',
  [
    {'decay': 0.0},
    {'clip': 0.0},
    {'warmup': 0},
    {'schedule': 'linear'},
    {'spike_factor': 3.0},
    {'layer_decay': 0.5},
    {'freeze': 'embed'},
    {'decay_mask': 'q$'},
    {'decay_where': 'aligned'},
    {'average': 'ema'},
    {'average': 'tail'},
    {'sphere': 'matrix', 'matrices': MATRICES},
    {'rule': {'fn': 'lm.optim.rules:sgd'}},
    {'rule': {'fn': 'lm.optim.rules:adamw', 'moment_dtype': 'bfloat16'}},
    {'rule': {'fn': 'tests.optim.numbers_test:own_rule', 'power': 0.5}},
  ],
  ids=str,
)
def test_what_switches_a_stage_is_another_structure(change):
  """A failure means that a run would be computed with another's program."""
  base = {}
  if 'power' in change.get('rule', {}):
    base = {'rule': {'fn': 'tests.optim.numbers_test:own_rule'}}
  assert taken(made(**base))[1] != taken(made(**base | change))[1]
  assert taken(made(**base))[1] == taken(made(**base))[1]


def test_constants_of_formulas_stay_constants():
  tx = optax.stateless(
    lambda u, _: jax.tree.map(lambda x: 1.0 - jnp.abs(x) ** 0.3 + 0.7 * x, u)
  )
  own, _ = taken(tx)
  assert set(own.floats.tolist()) == {np.float32(0.7)}
  assert not len(own.integers)
