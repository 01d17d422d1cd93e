"""Pieces of Muon and its relatives: updates of matrices that are orthogonal.

The letters of arrays: N matrices, R rows (what a product sums over), C columns
(what comes out, the neurons).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm import tree, types
from lm.optim import masks, schedules

# Newton-Schulz coefficients, one row an iteration: they bring singular values
# above 1/400 of the norm into [0.97, 1.15], where the constant (3.4445,
# -4.7750, 2.0315) of the first Muon swings between 0.68 and 1.20.
# Reference: Amsel et al. 2025, arXiv 2505.16932; the values are Dion's.
COEFFICIENTS = (
  (4.0848, -6.8946, 2.9270),
  (3.9505, -6.3029, 2.6377),
  (3.7418, -5.5913, 2.3037),
  (2.8769, -3.1427, 1.2046),
  (2.8366, -3.0525, 1.2012),
)

# Added to divisors that are 0 only where an update is; NorMuon's code has it.
_EPS = 1e-10


class NeuronState(NamedTuple):
  """State of `balance`.

  Attributes:
    neurons: averages of the squared updates of each neuron: of the shape of a
      parameter, with 1 for the dimensions that a product sums over.
  """

  neurons: Any


def sides(
  path: str, shape: tuple[int, ...], matrices: masks.Matrices
) -> tuple[int, int]:
  """Returns the rows and columns of a parameter that is a matrix."""
  found = masks.dimensions(path, matrices)
  assert found is not None
  rows, columns = (math.prod(shape[d] for d in part) for part in found)
  return rows, columns


def momentum(
  beta: float, nesterov: bool, dtype: str, matrices: masks.Matrices
) -> optax.GradientTransformation:
  """Makes momentum orthogonal, as Muon does; all parameters are matrices."""

  def dimensions(updates: types.Params) -> Any:
    def of(path: str, _: Any) -> Any:
      found = masks.dimensions(path, matrices)
      return contrib.MuonDimensionNumbers(*found) if found else None

    return tree.map_paths(of, updates)

  return contrib.scale_by_muon(
    COEFFICIENTS,
    len(COEFFICIENTS),
    beta,
    mu_dtype=dtype,
    nesterov=nesterov,
    weight_dimension_numbers=dimensions,
  )


def newton_schulz(x_NRC: jax.Array) -> jax.Array:
  """Brings the singular values of matrices near 1."""
  rows, columns = x_NRC.shape[1:]
  wide = x_NRC.mT if rows > columns else x_NRC
  norm = jnp.linalg.norm(wide, axis=(-2, -1), keepdims=True)
  wide = wide / (norm + _EPS)
  for a, b, c in COEFFICIENTS:
    square = wide @ wide.mT
    wide = a * wide + (b * square + c * square @ square) @ wide
  return wide.mT if rows > columns else wide


def balance(
  b2: float, matrices: masks.Matrices
) -> optax.GradientTransformation:
  """Gives all neurons of orthogonal updates the same size, on average.

  Each is divided by the root of its average square, and then the whole matrix
  gets the Frobenius norm of an orthogonal one: sqrt(min(rows, columns)).

  Reference: Li et al. 2025, arXiv 2510.05491, algorithm 1, lines 7 to 10; the
    factor of line 10 is applied by `size`.
  """

  def init(params: types.Params) -> NeuronState:
    def start(path: str, leaf: jax.Array) -> jax.Array:
      found = masks.dimensions(path, matrices)
      assert found is not None
      return jnp.mean(jnp.zeros_like(leaf), found[0], keepdims=True)

    return NeuronState(tree.map_paths(start, params))

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    del params

    def average(path: str, update: jax.Array, old: jax.Array) -> jax.Array:
      found = masks.dimensions(path, matrices)
      assert found is not None
      square = jnp.mean(update * update, found[0], keepdims=True)
      return b2 * old + (1 - b2) * square

    def scale(path: str, update: jax.Array, neurons: jax.Array) -> jax.Array:
      found = masks.dimensions(path, matrices)
      assert found is not None
      update = update / (jnp.sqrt(neurons) + _EPS)
      own = jnp.sum(update * update, (*found[0], *found[1]), keepdims=True)
      norm = min(sides(path, update.shape, matrices)) ** 0.5
      return update * (norm / (jnp.sqrt(own) + _EPS))

    neurons = tree.map_paths(average, updates, state.neurons)
    return tree.map_paths(scale, updates, neurons), NeuronState(neurons)

  return optax.GradientTransformation(init, update)


def size(
  update_rms: float, matrices: masks.Matrices
) -> optax.GradientTransformation:
  """Scales orthogonal updates, see `update_rms` of `rules.muon`."""

  def one(path: str, update: jax.Array) -> jax.Array:
    rows, columns = sides(path, update.shape, matrices)
    if update_rms:
      # Steps compute in float32, where a larger factor has no place.
      factor = min(update_rms * max(rows, columns) ** 0.5, schedules.LARGEST)
      return update * factor
    return update * max(1, columns / rows) ** 0.5

  return optax.stateless(lambda updates, _: tree.map_paths(one, updates))


def labels(matrices: masks.Matrices, params: types.Params) -> Any:
  """Labels each parameter 'muon' if it is a matrix, and otherwise 'adam'.

  Raises:
    ValueError: no parameter is a matrix.
  """
  found = tree.map_paths(
    lambda path, _: 'muon' if masks.dimensions(path, matrices) else 'adam',
    params,
  )
  if 'muon' not in jax.tree.leaves(found):
    raise ValueError('optim.rule.matrices: no parameter matches; add a row')
  return found
