"""Stages of an optimizer that any rule may have; see `optimizers.make`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import tree
from lm.optim import masks


def cautious(
  decay: float, mask: Callable[[Any], Any]
) -> optax.GradientTransformation:
  """Adds `decay * w` where the update has the sign of `w`, or one of them is 0.

  Reference: Chen et al. 2025, arXiv 2510.12402, algorithm 1.
  """

  def add(update: jax.Array, w: jax.Array) -> jax.Array:
    # Of signs, since a product of small numbers is flushed to 0.
    aligned = jnp.sign(update) * jnp.sign(w) >= 0
    return update + decay * jnp.where(aligned, w, 0)

  return optax.masked(
    optax.stateless(lambda u, w: jax.tree.map(add, u, w)), mask
  )


def balancing(
  tx: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
  """Moves `masks.BALANCING` by the sign of its gradient, and by nothing else.

  Such a gradient is the error of an expert's load: `moe.measure`. `tx` is shown
  zeros instead: they count for no norm, and leave its state's paths as they are
  without such a parameter.

  Reference: Wang et al. 2024, arXiv 2408.15664, algorithm 1.
  """

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    def hide(path: str, update: jax.Array) -> jax.Array:
      return jnp.zeros_like(update) if masks.is_balancing(path) else update

    def show(path: str, new: jax.Array, update: jax.Array) -> jax.Array:
      return -rate * jnp.sign(update) if masks.is_balancing(path) else new

    new, state = tx.update(tree.map_paths(hide, updates), state, params)
    return tree.map_paths(show, new, updates), state

  return optax.GradientTransformation(tx.init, update)


def layered(
  tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
  """Multiplies the rates of what is far below the output.

  Of N blocks that with number n (from 0) by `decay ** (N - n)`, of a stack by a
  vector; embeddings by `decay ** (N + 1)`; what is above the blocks by 1. Where
  there are several stacks, N is that of the deepest. It stands around `tx`, and
  sees frozen blocks too; the state's paths are those of `tx`.

  Reference: Howard and Ruder 2018, arXiv 1801.06146, section 3.2; Clark et al.
    2020, arXiv 2003.10555, appendix B, whose code multiplies once more.
  """

  def depth(numbers: dict[str, range]) -> int:
    return max((max(x) + 1 for x in numbers.values() if x), default=0)

  def init(params: Any) -> Any:
    if not depth(masks.blocks(params)):
      raise ValueError(
        f'optim.layer_decay={decay}: no parameter is in a layer: set it to 1'
      )
    return tx.init(params)

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    known = masks.blocks(updates)
    top = depth(known)

    def slower(path: str, update: jax.Array) -> jax.Array:
      numbers = known[path] or ([-1] if masks.is_embedding(path) else [top])
      if masks.is_balancing(path):
        return update
      # One by one, since an array is no argument of the program: `numbers`.
      each = [jnp.full(1, decay ** (top - n), update.dtype) for n in numbers]
      rates = jnp.concatenate(each)
      return update * rates.reshape(-1, *(1 for _ in update.shape[1:]))

    new, state = tx.update(updates, state, params)
    return tree.map_paths(slower, new), state

  return optax.GradientTransformation(init, update)
