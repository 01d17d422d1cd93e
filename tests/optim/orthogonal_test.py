"""NorMuon against numpy in float64, and what its updates are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.optim import optimizers, orthogonal, rules
from tests.optim import soap_test

MATRICES = ((r'q$', 1, 2), (r'o$', 2, 1), (r'up$', 1, 1))
BARE: dict[str, Any] = {'steps': 10, 'peak': 0.1, 'schedule': 'constant'}
BARE |= {'clip': 0.0, 'decay': 0.0}
SHAPES = {'q': (6, 2, 4), 'o': (2, 4, 3), 'up': (5, 5)}
SIDES = {'q': (6, 8), 'o': (8, 3), 'up': (5, 5)}


def gradients(count):
  rng = np.random.default_rng(0)
  return [
    {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    for _ in range(count)
  ]


@pytest.mark.parametrize('rms', [0.2, 0.0])
def test_normuon_is_numpy_normuon(rms):
  """Momentum, orthogonal, neurons of one size, a norm: three steps each."""
  rule = rules.normuon(
    adam_peak=0.1,
    momentum=0.9,
    nesterov=False,
    neuron_b2=0.8,
    update_rms=rms,
    matrices=MATRICES,
  )
  tx, _ = optimizers.make(rule=rule, **BARE)
  steps = gradients(3)
  params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
  got = soap_test.updates(
    tx, params, [jax.tree.map(jnp.float32, x) for x in steps]
  )
  m = {name: np.zeros(sides) for name, sides in SIDES.items()}
  v = {name: np.zeros(sides[1]) for name, sides in SIDES.items()}
  for gradient, update in zip(steps, got, strict=True):
    for name, (rows, columns) in SIDES.items():
      g = gradient[name].reshape(rows, columns)
      m[name] = 0.9 * m[name] + 0.1 * g
      unit = soap_test.newton_schulz(m[name])
      v[name] = 0.8 * v[name] + 0.2 * np.mean(unit**2, 0)
      unit = unit / np.sqrt(v[name])
      # Its RMS is 1 / sqrt(max(rows, columns)), as if it were orthogonal.
      unit *= np.sqrt(min(rows, columns)) / np.linalg.norm(unit)
      if rms:
        want = 0.2 * np.sqrt(max(rows, columns)) * unit
        assert np.sqrt(np.mean(want**2)) == pytest.approx(0.2)
      else:
        want = np.sqrt(max(1, columns / rows)) * unit
      np.testing.assert_allclose(
        np.reshape(update[name], (rows, columns)),
        -0.1 * want,
        rtol=1e-3,
        atol=1e-4,
      )


def test_neurons_of_a_stack_are_its_own():
  steps = gradients(3)
  rule = rules.normuon(adam_peak=0.1, matrices=MATRICES)
  tx, _ = optimizers.make(rule=rule, **BARE)

  def stacked(x, y):
    return {'layers': {'0': jax.tree.map(lambda *z: jnp.stack(z), x, y)}}

  both = [stacked(x, jax.tree.map(lambda z: 3 * z[::-1], x)) for x in steps]
  both = [jax.tree.map(jnp.float32, x) for x in both]
  params = jax.tree.map(jnp.ones_like, both[0])
  found = [*soap_test.updates(tx, params, both)]
  alone = soap_test.updates(
    tx,
    jax.tree.map(lambda x: x[0], params['layers']['0']),
    [jax.tree.map(jnp.float32, x) for x in steps],
  )
  for a, b in zip(found, alone, strict=True):
    for name in SHAPES:
      np.testing.assert_allclose(
        a['layers']['0'][name][0], b[name], rtol=1e-3, atol=1e-5
      )
  state: Any = tx.init(params)
  average = state['scale'].inner_states['muon'].inner_state[1].neurons
  assert average['layers']['0']['q'].shape == (2, 1, 2, 4)


@pytest.mark.parametrize('shape', [(2, 6, 9), (2, 9, 6)])
def test_singular_values_come_near_1(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  values = np.linalg.svd(orthogonal.newton_schulz(x), compute_uv=False)
  assert values.min() > 0.9 and values.max() < 1.2
  zeros = orthogonal.newton_schulz(jnp.zeros(shape))
  np.testing.assert_array_equal(zeros, 0)
