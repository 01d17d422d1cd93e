"""The only bridge from a Linen module to a Model."""

from collections.abc import Callable
from typing import cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import types


def bridge(
  module: nn.Module,
  axes: tuple,
  start: Callable[..., types.Cache],
  *,
  head: bool = True,
) -> types.Model:
  """Makes a Model of a module called as `module(batch, cache) -> Output`.

  Args:
    module: it.
    axes, start: as of `types.Model`.
    head: whether its method `head(hidden) -> logits` makes all of its logits.
  """

  def init(rng, batch):
    # Shapes of parameters depend on no value, so a single row is enough.
    row = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
    # Outside of any mesh: one row divides over nothing.
    nowhere = jax.sharding.AbstractMesh((), ())
    with jax.sharding.use_abstract_mesh(nowhere):
      return module.init({'params': rng}, row, None)['params']

  def apply(params, batch, *, cache=None, rng=None) -> types.Output:
    rngs = None if rng is None else {'dropout': rng}
    out = module.apply({'params': params}, batch, cache, rngs=rngs)
    return cast(types.Output, out)

  def score(params, hidden) -> jax.Array:
    logits = module.apply({'params': params}, hidden, method='head')
    return cast(jax.Array, logits)

  return types.Model(init, apply, start, axes, score if head else None)


def example_batch(batch_size: int, length: int) -> types.Batch:
  """Makes a batch of zeros, one document a row: shapes for `eval_shape`."""
  zeros = np.zeros((batch_size, length), np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (batch_size, 1))
  ones = np.ones((batch_size, length), np.int32)
  return types.Batch(
    zeros, zeros, np.ones((batch_size, length), np.float32), positions, ones
  )
