"""Spikes: updates whose gradient is far longer than those before it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import metrics

WINDOW = 100  # steps whose median is compared with


def refuse(factor: float) -> optax.GradientTransformation:
  """Makes a gradient nan if its norm is above `factor` times the usual one.

  The training step then drops the update as a whole, and counts it. What is
  usual is the median over the last 100 updates that were applied; before there
  are so many, nothing is refused. The state holds their norms, so that a run
  that is resumed decides alike.

  Args:
    factor: at least 1.
  """

  def init(params: Any) -> dict[str, jax.Array]:
    del params
    return {
      'norms': jnp.zeros(WINDOW, jnp.float32),
      'count': jnp.zeros((), jnp.int32),
    }

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    del params
    norms, count = state['norms'], state['count']
    norm = metrics.tree_norm(updates)
    is_spike = (count >= WINDOW) & (norm > factor * jnp.median(norms))
    updates = jax.tree.map(lambda u: jnp.where(is_spike, jnp.nan, u), updates)
    norms = norms.at[count % WINDOW].set(norm.astype(jnp.float32))
    return updates, {'norms': norms, 'count': optax.safe_increment(count)}

  return optax.GradientTransformation(init, update)
