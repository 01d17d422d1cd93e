"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Shampoo averages g @ g.T and g.T @ g of the gradients of a matrix. Rotated into
the eigenvectors of both, gradients have elements that are nearly independent,
and there Adam divides by the root of their average square. The first bases are
eigenvectors; later ones are one step of a power iteration from those before,
made orthogonal by QR, which is cheap enough to be done every few steps.

The letters of arrays: N matrices, R rows (what a product sums over), C columns;
S is one of them.

Costs, of a matrix of R rows and C columns:

  memory: 2 * (R^2 + C^2) numbers beside the 2 * R * C of Adam: three times
    Adam's in all for a square one
  a step: 8 * R * C * (R + C) FLOPs, for six rotations and two products; 16 *
    width^3 for a square one, as much as the passes over 8 / 3 * width tokens;
    SOAP-Muon rotates two times less, and adds what Muon costs
  a refresh: some 5 * S^3 FLOPs for each side S, of which QR is slow on
    accelerators; the eigenvectors of the first step, some 10 * S^3

A gradient of a few rows of text has fewer directions than a matrix has sides,
and eigenvectors of equal eigenvalues are any. So on the first steps another
layout of devices makes other updates, by more than rounding.

All of this is in float32 and at the highest precision, since rotations that are
not orthogonal would change the size of updates. So `max_size` bounds a side.

Reference: Vyas et al. 2024, arXiv 2409.11321, algorithms 3 and 4.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import tree, types
from lm.optim import masks, orthogonal, schedules


class Sides(NamedTuple):
  """Something of each side of a matrix; None where a side is too large.

  Attributes:
    rows: [N, R, R].
    columns: [N, C, C].
  """

  rows: Any
  columns: Any


class State(NamedTuple):
  """State of the transformations below.

  Attributes:
    count: int32, steps so far.
    mu: average gradients, of the shapes of the parameters.
    nu: average squares in the bases, of the shapes of the parameters.
    factors: `Sides` of each parameter, averages of g @ g.T and g.T @ g.
    bases: `Sides` of each parameter, whose columns are eigenvectors of the
      factors from the largest; zeros before the first step.
  """

  count: Any
  mu: Any
  nu: Any
  factors: Any
  bases: Any


class Bases(NamedTuple):
  """How bases are kept.

  Attributes:
    matrices: which parameters are matrices.
    beta: weight of the old value in the averages of factors.
    every: steps between two refreshes.
    max_size: a larger side has neither factor nor basis.
  """

  matrices: masks.Matrices
  beta: float
  every: int
  max_size: int

  def labels(self, params: types.Params) -> Any:
    """Labels matrices with a basis 'soap', and all other parameters 'adam'."""

    def label(path: str, kind: str, leaf: jax.Array) -> str:
      if kind == 'adam':
        return kind
      sides = orthogonal.sides(path, leaf.shape, self.matrices)
      return 'soap' if min(sides) <= self.max_size else 'adam'

    return tree.map_paths(
      label, orthogonal.labels(self.matrices, params), params
    )

  def start(self, params: types.Params, dtype: str) -> State:
    """Makes the state of step 0."""

    def zeros(path: str, leaf: jax.Array) -> Sides:
      sides = orthogonal.sides(path, leaf.shape, self.matrices)
      count = leaf.size // math.prod(sides)
      return Sides(
        *(
          jnp.zeros((count, size, size)) if size <= self.max_size else None
          for size in sides
        )
      )

    return State(
      jnp.zeros([], jnp.int32),
      jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params),
      jax.tree.map(jnp.zeros_like, params),
      tree.map_paths(zeros, params),
      tree.map_paths(zeros, params),
    )


def scale_by_soap(
  b1: float, b2: float, eps: float, bases: Bases, dtype: str
) -> optax.GradientTransformation:
  """Scales as Adam does, in the bases; all parameters are matrices with some.

  The first step makes the bases, and no update: in bases of its own a gradient
  is diagonal, and what rounding leaves beside the diagonal would count as much.
  """

  def one(
    count: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array, sides: Sides
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    mu = b1 * mu + jnp.where(count == 0, 0.0, 1 - b1) * g
    nu = b2 * nu + (1 - b2) * jnp.square(_into(g, sides))
    steps = jnp.maximum(count, 1)
    mean = _into(mu, sides) / (1 - b1**steps)
    scaled = mean / (jnp.sqrt(nu / (1 - b2**steps)) + eps)
    return _back(scaled, sides), mu, nu

  return _transformation(one, bases, dtype)


def orthogonal_momentum(
  beta: float, bases: Bases
) -> optax.GradientTransformation:
  """Makes Nesterov's momentum orthogonal, scaled in the bases before."""

  def one(
    count: jax.Array, g: jax.Array, mu: jax.Array, nu: jax.Array, sides: Sides
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    mu = beta * mu + (1 - beta) * g
    mean = beta * mu + (1 - beta) * g
    turned = _into(mean, sides)
    nu = bases.beta * nu + (1 - bases.beta) * jnp.square(turned)
    # Where nothing ever was, the root is 0, and so is what it divides.
    root = jnp.maximum(jnp.sqrt(nu), schedules.SMALLEST)
    scaled = jnp.where(count == 0, mean, _back(turned / root, sides))
    return orthogonal.newton_schulz(scaled), mu, nu

  return _transformation(one, bases, 'float32')


def _transformation(
  one: Callable[..., Any], bases: Bases, dtype: str
) -> optax.GradientTransformation:
  """Makes a transformation of what is done with one stack of matrices.

  Args:
    one: `(count, gradient, mu, nu, bases) -> (update, mu, nu)`, of arrays
      [N, R, C] and `Sides`.
    bases: how bases are kept.
    dtype: of mu.
  """

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    del params
    structure = jax.tree.structure(updates)
    paths = tree.paths(updates)
    factors, sides = (
      structure.flatten_up_to(x) for x in (state.factors, state.bases)
    )
    g_NRC, mu_NRC, nu_NRC = (
      [
        leaf.reshape(-1, *orthogonal.sides(path, leaf.shape, bases.matrices))
        for (path, _), leaf in zip(paths, jax.tree.leaves(x), strict=True)
      ]
      for x in (updates, state.mu, state.nu)
    )
    new = [
      one(state.count, *x)
      for x in zip(g_NRC, mu_NRC, nu_NRC, sides, strict=True)
    ]
    factors = [
      _averaged(bases.beta, g, old)
      for g, old in zip(g_NRC, factors, strict=True)
    ]
    sides, nu_NRC = _renewed(
      state.count, bases.every, factors, sides, [nu for *_, nu in new]
    )

    def whole(arrays: Sequence[jax.Array]) -> Any:
      shaped = zip(arrays, paths, strict=True)
      return structure.unflatten([x.reshape(w.shape) for x, (_, w) in shaped])

    return whole([x for x, *_ in new]), State(
      optax.safe_increment(state.count),
      whole([mu.astype(dtype) for _, mu, _ in new]),
      whole(nu_NRC),
      structure.unflatten(factors),
      structure.unflatten(sides),
    )

  return optax.GradientTransformation(
    lambda params: bases.start(params, dtype), update
  )


def _renewed(
  count: jax.Array,
  every: int,
  factors: list[Sides],
  bases: list[Sides],
  nu: list[jax.Array],
) -> tuple[list[Sides], list[jax.Array]]:
  """Renews all bases when it is time, and sorts `nu` as their columns are."""

  def first(bases: list[Sides], nu: list[jax.Array]) -> Any:
    del bases
    return [Sides(*(_eigenvectors(x) for x in each)) for each in factors], nu

  def refresh(bases: list[Sides], nu: list[jax.Array]) -> Any:
    found, sorted_nu = [], []
    for side, factor, squares in zip(bases, factors, nu, strict=True):
      rows, order = _iterated(factor.rows, side.rows)
      if order is not None:
        squares = jnp.take_along_axis(squares, order[:, :, None], 1)
      columns, order = _iterated(factor.columns, side.columns)
      if order is not None:
        squares = jnp.take_along_axis(squares, order[:, None, :], 2)
      found.append(Sides(rows, columns))
      sorted_nu.append(squares)
    return found, sorted_nu

  def keep(bases: list[Sides], nu: list[jax.Array]) -> Any:
    return bases, nu

  due = jnp.where(count % every == 0, 1, 0)
  which = jnp.where(count == 0, 2, due)
  return jax.lax.switch(which, [keep, refresh, first], bases, nu)


def _averaged(beta: float, g_NRC: jax.Array, old: Sides) -> Sides:
  """Averages the factors of gradients."""
  rows, columns = old
  if rows is not None:
    rows = beta * rows + (1 - beta) * _product(g_NRC, g_NRC.mT)
  if columns is not None:
    columns = beta * columns + (1 - beta) * _product(g_NRC.mT, g_NRC)
  return Sides(rows, columns)


def _eigenvectors(factor_NSS: jax.Array | None) -> jax.Array | None:
  """Finds the eigenvectors of a factor, the largest eigenvalue first."""
  if factor_NSS is None:
    return None
  return jnp.linalg.eigh(factor_NSS)[1][:, :, ::-1]


def _iterated(
  factor_NSS: jax.Array | None, basis_NSS: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
  """Takes one step of a power iteration, and makes the result orthogonal.

  QR keeps the span of the first columns, whatever their number. So they are
  sorted before, by their estimated eigenvalues, the largest first.

  Returns:
    The new basis, and the order of the old one's columns.
  """
  if factor_NSS is None or basis_NSS is None:
    return None, None
  product_NSS = _product(factor_NSS, basis_NSS)
  order_NS = jnp.argsort(-jnp.sum(basis_NSS * product_NSS, 1), axis=-1)
  product_NSS = jnp.take_along_axis(product_NSS, order_NS[:, None, :], 2)
  return jnp.linalg.qr(product_NSS)[0], order_NS


def _into(x_NRC: jax.Array, bases: Sides) -> jax.Array:
  """Rotates matrices into their bases."""
  if bases.rows is not None:
    x_NRC = _product(bases.rows.mT, x_NRC)
  return x_NRC if bases.columns is None else _product(x_NRC, bases.columns)


def _back(x_NRC: jax.Array, bases: Sides) -> jax.Array:
  """Rotates matrices out of their bases."""
  if bases.rows is not None:
    x_NRC = _product(bases.rows, x_NRC)
  return x_NRC if bases.columns is None else _product(x_NRC, bases.columns.mT)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision='highest')
