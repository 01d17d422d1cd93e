"""SOAP and SOAP-Muon against numpy in float64, and laws of their bases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import tree
from lm.optim import optimizers, orthogonal, rules, soap

MATRICES = ((r'up$', 1, 1), (r'q$', 1, 2))
BARE: dict[str, Any] = {'steps': 10, 'peak': 0.1, 'schedule': 'constant'}
BARE |= {'clip': 0.0, 'decay': 0.0}


def updates(tx, params, gradients):
  """Yields the updates of some steps of the same parameters."""
  state = tx.init(params)
  update = jax.jit(tx.update)
  for gradient in gradients:
    found, state = update(gradient, state, params)
    yield found


def draw(*shape, count):
  rng = np.random.default_rng(sum(shape))
  return [rng.normal(size=shape) for _ in range(count)]


def eigenvectors(factor):
  return np.linalg.eigh(factor)[1][:, ::-1]


def refreshed(factor, basis):
  """One step of the power iteration, and the order of the old columns."""
  product = factor @ basis
  order = np.argsort(-np.diag(basis.T @ product))
  return np.linalg.qr(product[:, order])[0], order


def by_hand(gradients, scale, *, beta, every, sides=(True, True)):
  """Yields updates: `scale(step, gradient, into, back, sort)` makes each.

  A side without a factor keeps the identity.
  """
  rows, columns = gradients[0].shape
  left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
  bases = [np.eye(rows), np.eye(columns)]
  order = [np.arange(rows), np.arange(columns)]
  for n, g in enumerate(gradients):
    u, v = bases
    yield scale(
      n,
      g,
      lambda x, u=u, v=v: u.T @ x @ v,
      lambda x, u=u, v=v: u @ x @ v.T,
      order,
    )
    left = beta * left + (1 - beta) * g @ g.T
    right = beta * right + (1 - beta) * g.T @ g
    order = [np.arange(rows), np.arange(columns)]
    for side, factor in enumerate((left, right)):
      if sides[side] and n == 0:
        bases[side] = eigenvectors(factor)
      elif sides[side] and n % every == 0:
        bases[side], order[side] = refreshed(factor, bases[side])


@pytest.mark.parametrize(
  ('shape', 'max_size'), [((5, 5), 8), ((4, 9), 8), ((9, 4), 8)]
)
def test_soap_is_numpy_soap(shape, max_size):
  """Steps 2 and 4 have new bases; a side of 9 has none."""
  b1, b2, eps, beta = 0.9, 0.8, 1e-6, 0.7
  moments = {'m': np.zeros(shape), 'v': np.zeros(shape)}

  def scale(n, g, into, back, order):
    if n == 0:
      return np.zeros(shape)
    moments['v'] = moments['v'][np.ix_(*order)]
    moments['m'] = b1 * moments['m'] + (1 - b1) * g
    moments['v'] = b2 * moments['v'] + (1 - b2) * into(g) ** 2
    mean = into(moments['m']) / (1 - b1**n)
    return back(mean / (np.sqrt(moments['v'] / (1 - b2**n)) + eps))

  gradients = draw(*shape, count=6)
  sides = tuple(size <= max_size for size in shape)
  want = by_hand(gradients, scale, beta=beta, every=2, sides=sides)
  rule = rules.soap(
    b1=b1,
    b2=b2,
    eps=eps,
    shampoo_beta=beta,
    every=2,
    max_size=max_size,
    matrices=MATRICES,
  )
  tx, _ = optimizers.make(rule=rule, **BARE)
  got = updates(
    tx,
    {'up': jnp.ones(shape)},
    [{'up': jnp.asarray(g, jnp.float32)} for g in gradients],
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a['up'], -0.1 * b, rtol=2e-3, atol=1e-4)
  assert np.abs(b).max() > 0.5


def newton_schulz(x):
  wide = x if x.shape[0] <= x.shape[1] else x.T
  wide = wide / np.linalg.norm(wide)
  for a, b, c in orthogonal.COEFFICIENTS:
    square = wide @ wide.T
    wide = a * wide + (b * square + c * square @ square) @ wide
  return wide if x.shape[0] <= x.shape[1] else wide.T


def test_soap_muon_is_numpy_soap_muon():
  beta, momentum, shape = 0.7, 0.9, (5, 5)
  moments = {'m': np.zeros(shape), 'v': np.zeros(shape)}

  def scale(n, g, into, back, order):
    moments['v'] = moments['v'][np.ix_(*order)]
    moments['m'] = momentum * moments['m'] + (1 - momentum) * g
    mean = momentum * moments['m'] + (1 - momentum) * g
    if n == 0:
      return newton_schulz(mean)
    moments['v'] = beta * moments['v'] + (1 - beta) * into(mean) ** 2
    return newton_schulz(back(into(mean) / np.sqrt(moments['v'])))

  gradients = draw(*shape, count=6)
  want = by_hand(gradients, scale, beta=beta, every=2)
  rule = rules.soap_muon(
    adam_peak=0.1,
    momentum=momentum,
    shampoo_beta=beta,
    every=2,
    update_rms=0.0,
    matrices=MATRICES,
  )
  tx, _ = optimizers.make(rule=rule, **BARE)
  got = updates(
    tx,
    {'up': jnp.ones(shape)},
    [{'up': jnp.asarray(g, jnp.float32)} for g in gradients],
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a['up'], -0.1 * b, rtol=2e-3, atol=1e-3)


def stacked(count):
  """Gradients of two layers: a plain matrix, and one with heads."""
  return [
    {'layers': {'0': {'up': jnp.asarray(a), 'q': jnp.asarray(b)}}}
    for a, b in zip(
      draw(2, 6, 6, count=count), draw(2, 6, 2, 3, count=count), strict=True
    )
  ]


@pytest.mark.parametrize('fn', [rules.soap, rules.soap_muon])
def test_a_stack_is_updated_as_its_matrices_one_by_one(fn):
  settings = {} if fn is rules.soap else {'adam_peak': 0.1}
  rule = fn(every=2, matrices=MATRICES, **settings)
  tx, _ = optimizers.make(rule=rule, **BARE)
  gradients = stacked(5)
  params = jax.tree.map(jnp.ones_like, gradients[0])
  got = [*updates(tx, params, gradients)]
  for layer in range(2):

    def of(x, layer=layer):
      return {
        f'layers_{layer}': jax.tree.map(lambda y: y[layer], x['layers']['0'])
      }

    alone = updates(tx, of(params), [*map(of, gradients)])
    for a, b in zip(got, alone, strict=True):
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
        of(a),
        b,
      )


def test_soap_without_factors_is_adam():
  params = jax.tree.map(jnp.ones_like, stacked(1)[0])
  one, two = (
    optimizers.make(rule=rule, **BARE)[0]
    for rule in (
      rules.soap(b1=0.9, b2=0.95, max_size=3, matrices=MATRICES),
      rules.adamw(),
    )
  )
  for a, b in zip(
    updates(one, params, stacked(3)),
    updates(two, params, stacked(3)),
    strict=True,
  ):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_soap_with_identity_bases_is_adam():
  """Adam has no first step without an update, and is one step behind."""
  gradients = [g['layers']['0'] for g in stacked(5)]
  params = jax.tree.map(jnp.ones_like, gradients[0])
  bases = soap.Bases(MATRICES, 0.9, 1000, 100)
  tx: Any = soap.scale_by_soap(0.9, 0.95, 1e-8, bases, 'float32')
  adam = optax.scale_by_adam(0.9, 0.95, 1e-8)
  state, other = tx.init(params), adam.init(params)
  _, state = tx.update(gradients[0], state)
  for path, basis in tree.paths(state.bases):
    for matrix in np.asarray(basis, np.float64):
      np.testing.assert_allclose(
        matrix.T @ matrix, np.eye(6), atol=1e-5, err_msg=path
      )
  identity = jax.tree.map(
    lambda x: jnp.broadcast_to(jnp.eye(x.shape[-1]), x.shape), state.bases
  )
  state = state._replace(bases=identity)
  for gradient in gradients[1:]:
    got, state = tx.update(gradient, state)
    want, other = adam.update(gradient, other)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, want
    )


def test_bases_find_the_directions_of_gradients():
  """Gradients of one law: bases turn their factors into diagonal ones."""
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  size = 2.0 ** -np.arange(6)
  bases = soap.Bases(MATRICES, 0.95, 1, 100)
  tx: Any = soap.scale_by_soap(0.9, 0.9, 1e-8, bases, 'float32')
  params = {'up': jnp.zeros((6, 6))}
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(100):
    g = turn @ (size[:, None] * rng.normal(size=(6, 6)))
    _, state = update({'up': jnp.asarray(g, jnp.float32)}, state)
  found = state.factors['up'].rows[0], state.bases['up'].rows[0]
  factor, basis = (np.asarray(x, np.float64) for x in found)
  np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
  turned = basis.T @ factor @ basis
  values = np.diag(turned)
  assert (np.diff(values) < 0).all()
  scaled = turned / np.sqrt(np.outer(values, values))
  np.testing.assert_allclose(scaled, np.eye(6), atol=0.15)
  # Those of the law itself, up to their sign.
  assert np.abs(np.sum(basis * turn, 0)[:3]).min() > 0.9


@pytest.mark.parametrize('name', ['soap', 'soap_muon'])
def test_a_regression_from_noisy_rows_is_learned(name):
  # Where noise hides most of a gradient SOAP-Muon turns far from it, and needs
  # long steps.
  rule, peak, bound = {
    'soap': (rules.soap(every=5, matrices=MATRICES), 0.1, 0.001),
    'soap_muon': (
      rules.soap_muon(adam_peak=0.1, every=5, matrices=MATRICES),
      0.6,
      0.1,
    ),
  }[name]
  tx, _ = optimizers.make(
    rule=rule, steps=200, peak=peak, schedule='linear', clip=0.0, decay=0.0
  )
  goal, spread = (
    jax.random.normal(jax.random.key(0), (12, 12)),
    2.0 ** -(jnp.arange(12) / 2),
  )

  def loss(params, x):
    return jnp.mean(jnp.square(x @ (params['up'] - goal)))

  def one(carry, key):
    params, state = carry
    x = jax.random.normal(key, (8, 12)) * spread[None]
    new, state = tx.update(jax.grad(loss)(params, x), state, params)
    return (optax.apply_updates(params, new), state), None

  params = {'up': jnp.zeros((12, 12))}
  keys = jax.random.split(jax.random.key(1), 200)
  (after, _), _ = jax.jit(lambda p: jax.lax.scan(one, (p, tx.init(p)), keys))(
    params
  )
  x = jax.random.normal(jax.random.key(2), (1000, 12)) * spread[None]
  assert loss(after, x) < bound * loss(params, x)
