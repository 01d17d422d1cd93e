"""Hyperballs: matrices that keep the norm they start with.

Weight decay decides how large weights become, and so by how much a step turns
them. On a sphere both are given instead: a matrix keeps its norm, and each
update has that norm times the learning rate. So a peak is an angle, about 0.02,
whatever the rule, and decay of all elements alike changes nothing. It works
with every rule: of Adam and Muon it makes what is called AdamH and MuonH.

Reference: Wen et al. 2026, arXiv 2606.16899 (Hyperball).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import tree, types
from lm.optim import masks, schedules

KINDS = ('', 'matrix', 'neuron')


class State(NamedTuple):
  """State of `unit` and `keep`.

  Attributes:
    radius: norms at the start: of the shape of a matrix, with 1 for the
      dimensions that a norm is of. 0 where a matrix starts as zeros: it is on
      no sphere, since there it could not move.
  """

  radius: Any


def check(
  sphere: str, matrices: masks.Matrices | None, layer_decay: float
) -> masks.Matrices:
  """Checks the settings of `optimizers.make` that matter here.

  Raises:
    ValueError: an unknown kind, no matrices, or rates that norms forbid.
  """
  if sphere not in KINDS:
    raise ValueError(f"optim.sphere={sphere!r}: use '', matrix or neuron")
  if sphere and layer_decay != 1:
    raise ValueError(
      f'optim.layer_decay={layer_decay}: it would take weights off their '
      "sphere: set it to 1, or optim.sphere to ''"
    )
  if sphere and matrices is None:
    raise ValueError('optim.matrices: give those of the model, Model.matrices')
  return tuple((regex, rows, out) for regex, rows, out in matrices or ())


def unit(sphere: str, matrices: masks.Matrices) -> optax.GradientTransformation:
  """Gives updates the norm of what they update, before the learning rate.

  Args:
    sphere: 'matrix' for the norm of a whole matrix, 'neuron' for that of each
      output: of a column, or what torch has as a row.
    matrices: which parameters are matrices; others are left alone.
  """

  def one(
    dims: tuple[int, ...], update: jax.Array, _: jax.Array, radius: jax.Array
  ) -> jax.Array:
    # Without an update there is nothing to make longer.
    norm = jnp.maximum(_norm(update, dims), schedules.SMALLEST)
    return jnp.where(radius > 0, update / norm * radius, update)

  return _transformation(one, sphere, matrices)


def keep(sphere: str, matrices: masks.Matrices) -> optax.GradientTransformation:
  """Changes final updates so that norms stay what they were at the start."""

  def one(
    dims: tuple[int, ...],
    update: jax.Array,
    weights: jax.Array,
    radius: jax.Array,
  ) -> jax.Array:
    new = weights + update
    norm = jnp.maximum(_norm(new, dims), schedules.SMALLEST)
    return jnp.where(radius > 0, new / norm * radius - weights, update)

  return _transformation(one, sphere, matrices)


def update_size(
  size: Callable[[str], str], sphere: str, matrices: masks.Matrices
) -> Callable[[str], str]:
  """Says how large updates are on a sphere, see `rules.Rule.update_size`."""

  def of(path: str) -> str:
    own = size(path)
    if not sphere or not masks.dimensions(path, matrices):
      return own
    return 'angular' if own in ('spectral', 'matched') else 'relative'

  return of


def _norm(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x), dims, keepdims=True))


def _transformation(
  one: Callable[..., jax.Array], sphere: str, matrices: masks.Matrices
) -> optax.GradientTransformation:
  """Makes a transformation of what is done with one parameter.

  Args:
    one: `(dimensions, update, weights, radius) -> update`.
    sphere: a kind.
    matrices: which parameters are matrices.
  """

  def dimensions(path: str) -> tuple[int, ...]:
    found = masks.dimensions(path, matrices)
    assert found is not None
    return found[0] if sphere == 'neuron' else (*found[0], *found[1])

  def init(params: types.Params) -> State:
    return State(
      tree.map_paths(lambda path, x: _norm(x, dimensions(path)), params)
    )

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    new = tree.map_paths(
      lambda path, *x: one(dimensions(path), *x), updates, params, state.radius
    )
    return new, state

  def chosen(params: types.Params) -> Any:
    mask = tree.map_paths(
      lambda path, _: masks.dimensions(path, matrices) is not None, params
    )
    if not any(jax.tree.leaves(mask)):
      raise ValueError('optim.matrices: no parameter matches; add a row')
    return mask

  return optax.masked(optax.GradientTransformation(init, update), chosen)
