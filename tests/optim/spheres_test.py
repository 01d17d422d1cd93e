"""Matrices on spheres keep their norms, with every rule; AdamH by hand."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, optim, tree
from lm.optim import masks, optimizers, rules
from tests.laws import laws_test as laws
from tests.optim import transfer_test

MATRICES = ((r'q$', 1, 2), (r'up$', 1, 1))
BARE: dict[str, Any] = {'peak': 0.02, 'schedule': 'constant', 'steps': 400}
BARE |= {'clip': 0.0, 'matrices': MATRICES}
RULES: dict[str, Any] = {
  'adamw': rules.adamw(),
  'sgd': rules.sgd(),
  'lion': rules.lion(),
  'adafactor': rules.adafactor(matrices=MATRICES, size=2),
  'muon': rules.muon(adam_peak=1e-3, matrices=MATRICES),
  'normuon': rules.normuon(adam_peak=1e-3, matrices=MATRICES),
  'soap': rules.soap(matrices=MATRICES),
  'soap_muon': rules.soap_muon(adam_peak=1e-3, matrices=MATRICES),
}


def drawn(seed: int = 0) -> dict[str, Any]:
  """Draws two stacked layers and an embedding."""
  keys = iter(jax.random.split(jax.random.key(seed), 3))
  return {
    'layers': {
      '0': {
        'q': 0.02 * jax.random.normal(next(keys), (2, 6, 2, 4)),
        'up': 3 * jax.random.normal(next(keys), (2, 6, 9)),
        'scale': jnp.ones((2, 6)),
      }
    },
    'embed': {'table': jax.random.normal(next(keys), (5, 6))},
  }


def norms(params: Any, sphere: str) -> dict[str, np.ndarray]:
  """Computes the norms of matrices or neurons in float64."""
  found = {}
  for path, leaf in tree.paths(params):
    dims = masks.dimensions(path, MATRICES)
    if dims is not None:
      square = np.square(np.asarray(leaf, np.float64))
      over = dims[0] if sphere == 'neuron' else (*dims[0], *dims[1])
      found[path] = np.sqrt(square.sum(over))
  return found


@pytest.mark.parametrize('sphere', ['matrix', 'neuron'])
@pytest.mark.parametrize('name', RULES)
def test_norms_stay(name, sphere):
  tx, _ = optimizers.make(
    rule=RULES[name], sphere=sphere, decay=0.1, decay_where='aligned', **BARE
  )

  def one(carry, key):
    params, state = carry
    gradient = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  before = drawn()
  keys = jax.random.split(jax.random.key(1), 200)
  (after, _), _ = jax.jit(lambda p: jax.lax.scan(one, (p, tx.init(p)), keys))(
    before
  )
  want = norms(before, sphere)
  for path, norm in norms(after, sphere).items():
    np.testing.assert_allclose(norm, want[path], rtol=1e-6, err_msg=path)
    assert norm.shape == ((2,) if sphere == 'matrix' else norm.shape)
  for (path, x), (_, y) in zip(
    tree.paths(before), tree.paths(after), strict=True
  ):
    assert np.abs(x - y).max() > 0, path


def test_adam_on_a_sphere_is_numpy_adamh():
  """R * normalize(w - rate * R * normalize(u)), of each matrix of a stack."""
  tx, _ = optimizers.make(
    rule=rules.adamw(), sphere='matrix', decay=0.0, **BARE
  )
  params: Any = drawn()
  gradients = [drawn(n) for n in (1, 2, 3)]
  w = np.asarray(params['layers']['0']['q'], np.float64)
  radius = [np.linalg.norm(x) for x in w]
  m, v = np.zeros(w.shape), np.zeros(w.shape)
  state = tx.init(params)
  for t, gradient in enumerate(gradients, 1):
    g = np.asarray(gradient['layers']['0']['q'], np.float64)
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    unit = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    for n in range(2):
      new = w[n] - 0.02 * radius[n] * unit[n] / np.linalg.norm(unit[n])
      w[n] = radius[n] * new / np.linalg.norm(new)
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
      params['layers']['0']['q'], w, rtol=1e-4, atol=1e-7
    )
  # What is no matrix is Adam's.
  plain, _ = optimizers.make(rule=rules.adamw(), decay=0.0, **BARE)
  got, want = (
    cast(Any, x).update(gradients[0], x.init(params), params)[0]
    for x in (tx, plain)
  )
  np.testing.assert_array_equal(got['embed']['table'], want['embed']['table'])
  np.testing.assert_array_equal(
    got['layers']['0']['scale'], want['layers']['0']['scale']
  )


def test_a_neuron_is_a_column():
  tx, _ = optimizers.make(
    rule=rules.sgd(momentum=0.0), sphere='neuron', decay=0.0, **BARE
  )
  params = {'up': jnp.asarray([[3.0, 0.0], [4.0, 2.0]])}
  # Only the second neuron has a gradient, at a right angle.
  gradient = {'up': jnp.asarray([[0.0, -7.0], [0.0, 0.0]])}
  got: Any = tx.update(gradient, tx.init(params), params)[0]
  new = 2 * np.asarray([0.02, 1.0]) / np.hypot(0.02, 1)
  np.testing.assert_allclose(
    got['up'], [[0, new[0]], [0, new[1] - 2]], rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('sphere', ['matrix', 'neuron'])
def test_what_starts_as_zeros_is_on_no_sphere(sphere):
  params: Any = {'up': jnp.zeros((3, 4)), 'q': jnp.ones((2, 2, 2))}
  gradient = jax.tree.map(jnp.ones_like, params)
  tx, _ = optimizers.make(rule=rules.adamw(), sphere=sphere, **BARE)
  state = tx.init(params)
  for n in (1, 2):
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params['up'], -0.02 * n, rtol=1e-2)


def test_a_gradient_of_zeros_moves_nothing():
  params = drawn()
  zero = jax.tree.map(jnp.zeros_like, params)
  tx, _ = optimizers.make(rule=rules.adamw(), sphere='matrix', **BARE)
  got, _ = tx.update(zero, tx.init(params), params)
  want = norms(params, 'matrix')
  for path, update in tree.paths(got):
    if path in want:
      size = np.abs(update).max() / want[path].max()
      assert size < 1e-6, path


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'sphere': 'ball'}, "optim.sphere='ball': use '', matrix or neuron"),
    (
      {'sphere': 'matrix', 'layer_decay': 0.9},
      'optim.layer_decay=0.9: it would take weights off their sphere: set it '
      "to 1, or optim.sphere to ''",
    ),
    (
      {'sphere': 'matrix'},
      'optim.matrices: give those of the model, Model.matrices',
    ),
  ],
)
def test_refuses_bad_settings(settings, message):
  with pytest.raises(ValueError, match='^' + re.escape(message) + '$'):
    optimizers.make(steps=1, peak=1.0, **settings)


def test_refuses_a_model_without_matrices():
  tx, _ = optimizers.make(rule=rules.adamw(), sphere='matrix', **BARE)
  with pytest.raises(ValueError, match=r'^optim\.matrices: no parameter mat'):
    tx.init({'embed': {'table': jnp.ones((4, 4))}})


@pytest.mark.parametrize(
  ('rule', 'factor'),
  [
    ({'fn': 'lm.optim.rules:adamw'}, 0.5),
    ({'fn': 'lm.optim.rules:lion'}, 0.5),
    ({'fn': 'lm.optim.rules:sgd'}, 0.5),
    (
      {'fn': 'lm.optim.rules:muon', 'adam_peak': 1.0, 'matrices': None},
      1.0,
    ),
    (
      {'fn': 'lm.optim.rules:normuon', 'adam_peak': 1.0, 'matrices': None},
      1.0,
    ),
  ],
)
def test_rates_on_a_sphere_follow_the_width(rule, factor):
  """Four times the width: by its root, or not at all if orthogonal."""
  model = config.build(transfer_test.grown(), vocab=64)
  params = model.init(0, laws.packed('gpt2'))
  gradients = jax.tree.map(
    lambda x: jnp.sin(jnp.arange(x.size) + 1.0).reshape(x.shape), params
  )

  def moved(model: Any) -> dict[str, float]:
    # So small that the way along the sphere is as good as straight.
    spec = {'peak': 1e-3, 'rule': rule, 'clip': 0.0, 'sphere': 'matrix'}
    tx, _ = optimizers.make(
      steps=2, schedule='constant', **optim.fitted(spec, model)
    )
    found = tx.update(gradients, tx.init(params), params)[0]
    return {path: float(jnp.linalg.norm(x)) for path, x in tree.paths(found)}

  grown, plain = moved(model), moved(model._replace(growth=(1.0, 1.0)))
  for path in ('layers_0/attention/q', 'layers_1/mlp/down'):
    assert grown[path] == pytest.approx(factor * plain[path], rel=1e-3)
  assert grown['head/kernel'] == pytest.approx(plain['head/kernel'] / 4, 1e-3)
