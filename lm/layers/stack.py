"""Depth: one block repeated, unrolled or scanned, with rematerialization."""

from collections.abc import Callable, Sequence
import difflib
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import attention

_POLICIES = {
  'full': 'nothing_saveable',
  'dots': 'dots_with_no_batch_dims_saveable',
}


def remat_policy(name: str) -> Callable[..., Any]:
  """Finds a policy: 'full' keeps nothing, 'dots' the products with weights.

  Every other name is looked up in `jax.checkpoint_policies`.

  Raises:
    ValueError: for an unknown name.
  """
  name = _POLICIES.get(name, name)
  policy = getattr(jax.checkpoint_policies, name, None)
  if policy is None:
    known = ['none', *_POLICIES, *vars(jax.checkpoint_policies)]
    close = difflib.get_close_matches(name, known, 1) or ['full']
    raise ValueError(
      f'remat={name!r} is no policy: did you mean {close[0]!r}? '
      "'none', 'full', 'dots' or a name in jax.checkpoint_policies"
    )
  return policy


def apply(
  block: Callable[..., nn.Module],
  x_BLD: jax.Array,
  views: Sequence[attention.View],
  cache: Any,
  *,
  depth: int,
  scan: bool,
  remat: str,
  which: Sequence[int] | None = None,
) -> tuple[jax.Array, Any]:
  """Runs `depth` blocks inside the calling module.

  Scanned layers compile once, whatever the depth, and keep their parameters
  stacked under `layers`; unrolled ones (`layers_0`, ...) run 8-14 % faster on
  CPU at 4-8 layers and give the compiler more to fuse on GPU.

  Args:
    block: builds one block, given `name`.
    x_BLD: the stream.
    views: what blocks look at.
    cache: None, or `{'index': int32, 'layers': ...}`, where `layers` is a tuple
      with a block's cache each, or one whose arrays are stacked if scanned.
    depth: how many blocks.
    scan: scanned or unrolled.
    remat: 'none', or a policy: what the backward pass need not compute again.
    which: the view of each block; None is the first for all.

  Returns:
    [B, L, D] and the new cache.
  """
  which = [0] * depth if which is None else which

  def run(n, module, x_BLD, layer):
    view = views[n] if isinstance(n, int) else _choose(n, views)
    if cache is not None:
      layer = {**layer, 'index': cache['index']}
    x_BLD, layer = module(x_BLD, view, layer)
    if layer is not None:
      layer = {k: v for k, v in layer.items() if k != 'index'}
    return sharding.constrain(x_BLD, 'batch', 'length', None), layer

  def saving(fn):
    if remat == 'none':
      return fn
    # Inside a scan the loop itself prevents the merging of both passes.
    return nn.remat(fn, policy=remat_policy(remat), prevent_cse=not scan)

  layers = None if cache is None else cache['layers']
  if scan:
    x_BLD, layers = nn.scan(
      saving(lambda module, x, xs: run(xs[1], module, x, xs[0])),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=depth,
    )(block(name='layers'), x_BLD, (layers, jnp.asarray(which)))
  else:
    new = []
    for i in range(depth):
      layer = None if layers is None else layers[i]
      step = saving(partial(run, which[i]))
      x_BLD, layer = step(block(name=f'layers_{i}'), x_BLD, layer)
      new.append(layer)
    layers = tuple(new)
  if cache is not None:
    # A tuple and not a stack when unrolled: stacking would copy every layer's
    # cache for every token that is generated.
    index = cache['index'] + x_BLD.shape[1]
    cache = {**cache, 'index': index, 'layers': layers}
  return x_BLD, cache


def start(shape: Sequence[int], dtype: str, depth: int, scan: bool) -> Any:
  """Makes the `layers` of a cache of zeros; `shape` is [B, K, S, H]."""
  B, K, S, H = shape
  lead = (depth, B * K) if scan else (B * K,)
  layer = {
    'k': jnp.zeros((*lead, H, S), dtype),
    'v': jnp.zeros((*lead, S, H), dtype),
  }
  return layer if scan else (layer,) * depth


def _choose(n, views):
  if len(views) == 1:
    return views[0]
  return jax.tree.map(lambda *xs: jax.lax.select_n(n, *xs), *views)


def stack_params(params: dict[str, Any]) -> dict[str, Any]:
  """Turns the parameters of an unrolled stack into those of a scanned one."""
  depth = sum(name.startswith('layers_') for name in params)
  layers = [params[f'layers_{i}'] for i in range(depth)]
  rest = {k: v for k, v in params.items() if not k.startswith('layers_')}
  return {**rest, 'layers': jax.tree.map(lambda *a: jnp.stack(a), *layers)}


def unstack_params(params: dict[str, Any]) -> dict[str, Any]:
  """Undoes `stack_params`."""
  depth = jax.tree.leaves(params['layers'])[0].shape[0]
  layers = {
    f'layers_{i}': jax.tree.map(lambda a, i=i: a[i], params['layers'])
    for i in range(depth)
  }
  return {**{k: v for k, v in params.items() if k != 'layers'}, **layers}
