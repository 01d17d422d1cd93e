"""From a Linen module to a Model, and what models of text share."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import initial, types
from lm.layers import initializers, parts, stack
from lm.optim import transfer


def bridge(
  module: nn.Module,
  rows: Sequence[parts.Row],
  start: Callable[..., types.Cache],
  *,
  unrolled: nn.Module | None = None,
  layouts: Mapping[str, stack.Layers] = MappingProxyType({}),
  head: bool = True,
  flops: Callable[[int], float] | None = None,
  growth: tuple[float, float] = (1.0, 1.0),
) -> types.Model:
  """Makes a Model of a module called as `module(batch, cache) -> Output`.

  Args:
    module: the model.
    rows: of its parameters, first match wins.
    start: see `types.Model`.
    unrolled: the same model without scans, which draws the initial values: so
      they do not depend on `scan`. None is the module itself.
    layouts: of the module's stacks, by the scopes that hold them; '' is the
      root.
    head: whether its method `head(hidden) -> logits` makes all of its logits.
    flops, growth: see `types.Model`.
  """
  drawn = module if unrolled is None else unrolled

  def parameters(batch):
    # Shapes of parameters depend on no value, so a single row is enough.
    row = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
    # Outside of any mesh: one row divides over nothing.
    nowhere = jax.sharding.AbstractMesh((), ())
    with jax.sharding.use_abstract_mesh(nowhere):
      params = initializers.parameters(drawn, row, None)
    for scope, layers in layouts.items():
      blocks = params[scope] if scope else params
      stacked = stack.stack_params(blocks, layers, _stacked)
      params = {**params, scope: stacked} if scope else stacked
    return params if growth == (1, 1) else transfer.drawn(params, model)

  def apply(params, batch, *, cache=None, rng=None) -> types.Output:
    rngs = None if rng is None else {'dropout': rng}
    out = module.apply({'params': params}, batch, cache, rngs=rngs)
    return cast(types.Output, out)

  def score(params, hidden) -> jax.Array:
    logits = module.apply({'params': params}, hidden, method='head')
    return cast(jax.Array, logits)

  model = types.Model(
    parameters,
    apply,
    start,
    tuple((row.path, row.axes) for row in rows),
    score if head else None,
    matrices=tuple(
      types.Matrix(x.path, x.summed, x.out, x.hidden) for x in rows if x.summed
    ),
    flops=flops,
    growth=growth,
  )
  return model


def _stacked(parameters: Sequence[Any]) -> initial.Stacked:
  return initial.Stacked(tuple(parameters))


def remember(
  batch: types.Batch, room: int, layers: Callable[[parts.Text], Any]
) -> dict[str, Any]:
  """Makes the empty cache of a decoder.

  Args:
    batch: the prompt.
    room: positions that it holds.
    layers: makes the caches of the blocks, given the prompt.
  """
  shape = len(batch.tokens), room
  cache = {
    'index': jnp.zeros((), jnp.int32),
    'segments': jnp.zeros(shape, jnp.int32),
    'positions': jnp.zeros(shape, jnp.int32),
    'layers': layers(parts.Text(batch.segments, batch.positions)),
  }
  if batch.prefix is not None:
    cache['prefix'] = jnp.zeros(shape, bool)
  return cache


def recall(
  batch: types.Batch, cache: dict[str, Any] | None
) -> tuple[parts.Text, dict[str, Any] | None]:
  """Adds a batch's tokens to a decoder's cache, and describes the text."""
  text = parts.Text(
    batch.segments, batch.positions, batch.prefix, tokens=batch.tokens
  )
  if cache is None:
    return text, None
  first = cache['index']
  known = {
    name: jax.lax.dynamic_update_slice(cache[name], new, (0, first))
    for name in ('segments', 'positions', 'prefix')
    if name in cache and (new := getattr(batch, name)) is not None
  }
  cache = {**cache, **known, 'index': first + batch.tokens.shape[1]}
  keys = parts.Text(cache['segments'], cache['positions'], cache.get('prefix'))
  return text._replace(keys=keys, first=first), cache


def example_batch(batch_size: int, length: int) -> types.Batch:
  """Makes a batch of zeros, one document a row: shapes for `eval_shape`."""
  zeros = np.zeros((batch_size, length), np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (batch_size, 1))
  ones = np.ones((batch_size, length), np.int32)
  return types.Batch(
    zeros, zeros, np.ones((batch_size, length), np.float32), positions, ones
  )
