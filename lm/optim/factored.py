"""Adafactor's scaling, one matrix at a time.

optax's pieces look at whole leaves: with scanned layers their statistics would
mix layers, and a kernel [D, N, H] with H < 128 would not be factored at all.
So every leaf is first seen as a batch of blocks (matrices, or what else one
layer holds), and optax's pieces run on each block.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import tree, types
from lm.optim import masks


def _blocks(
  path: str, shape: tuple[int, ...], matrices: masks.Matrices
) -> tuple[int, ...]:
  """Shapes a leaf as (blocks, *block); a matrix is (blocks, rows, columns)."""
  dims = masks.dimensions(path, matrices)
  if dims is None:
    return shape if masks.is_stacked(path) else (1, *shape)
  rows, columns = (math.prod(shape[d] for d in part) for part in dims)
  return (math.prod(shape) // (rows * columns), rows, columns)


def scale_by_blocks(
  *,
  power: float,
  size: int,
  eps: float,
  threshold: float,
  parameter_scale: bool,
  matrices: masks.Matrices,
) -> optax.GradientTransformation:
  """Scales by factored second moments, per block, as Adafactor does.

  The state is an `optax.FactoredState` whose moments lead with the number of
  blocks: v_row [blocks, rows] and v_col [blocks, columns] of a matrix whose
  sides are both at least `size`, else v [blocks, ...]; what is not needed has
  shape [blocks, 1].

  Args:
    power: second moments are averaged with b2 = 1 - step^-power.
    size: matrices with a smaller side are not factored.
    eps: added to squared gradients.
    threshold: the largest RMS of a block's update before `parameter_scale`.
    parameter_scale: multiply by the RMS of the block's parameters.
    matrices: `Model.matrices`.

  Reference: Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4.
  """
  moments = optax.scale_by_factored_rms(
    decay_rate=power, min_dim_size_to_factor=size, epsilon=eps
  )
  stateless = [optax.clip_by_block_rms(threshold)]
  if parameter_scale:
    stateless.append(optax.scale_by_param_block_rms())

  step: Callable[..., Any] = moments.update

  def init(params: types.Params) -> optax.FactoredState:
    def start(path, leaf):
      return jax.vmap(moments.init)(
        leaf.reshape(_blocks(path, leaf.shape, matrices))
      )

    states = tree.map_paths(start, params)

    def take(field):
      return jax.tree.map(
        lambda state: getattr(state, field),
        states,
        is_leaf=lambda x: isinstance(x, optax.FactoredState),
      )

    return optax.FactoredState(
      jnp.zeros([], jnp.int32), take('v_row'), take('v_col'), take('v')
    )

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    assert params is not None

    def one(gradient: Any, param: Any, *parts: Any) -> tuple[Any, ...]:
      old: Any = optax.FactoredState(state.count, *parts)
      update, new = step(gradient, old, param)
      for piece in stateless:
        update, _ = piece.update(update, optax.EmptyState(), param)
      return update, new.v_row, new.v_col, new.v

    def leaf(path: str, gradient: Any, param: Any, *parts: Any) -> Any:
      shape = _blocks(path, gradient.shape, matrices)
      update, *new = jax.vmap(one)(
        gradient.reshape(shape), param.reshape(shape), *parts
      )
      return update.reshape(gradient.shape), *new

    found = tree.map_paths(
      leaf, updates, params, state.v_row, state.v_col, state.v
    )
    updates, v_row, v_col, v = jax.tree.transpose(
      jax.tree.structure(updates), jax.tree.structure((0, 0, 0, 0)), found
    )
    count = optax.safe_increment(state.count)
    return updates, optax.FactoredState(count, v_row, v_col, v)

  return optax.GradientTransformation(init, update)
