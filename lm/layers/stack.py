"""Depth: one block repeated, unrolled or scanned, with rematerialization."""

from collections.abc import Callable, Sequence
import difflib
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import metrics, sharding, types
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
  block: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]],
  x_BLD: jax.Array,
  views: Sequence[attention.View],
  cache: Any,
  *,
  depth: int,
  scan: bool,
  remat: str,
  which: Sequence[int] | None = None,
) -> tuple[jax.Array, Any, dict[str, types.Metric]]:
  """Runs `depth` blocks inside the calling module.

  Over the mesh axis `stage` blocks are dealt out and run as a pipeline; see
  `_pipeline`.

  Scanned layers compile once, whatever the depth, and keep their parameters
  stacked under `layers`; unrolled ones (`layers_0`, ...) run 8-14 % faster on
  CPU at 4-8 layers and give the compiler more to fuse on GPU.

  Args:
    block: builds one block, given `name`; or one for each of unrolled layers.
    x_BLD: the stream.
    views: what blocks look at.
    cache: None, or `{'index': int32, 'layers': ...}`, where `layers` is a tuple
      with a block's cache each, or one whose arrays are stacked if scanned.
    depth: how many blocks.
    scan: scanned or unrolled.
    remat: 'none', or a policy: what the backward pass need not compute again.
    which: the view of each block; None is the first for all.

  Returns:
    [B, L, D], the new cache, and what the blocks measure, merged over layers: a
    metric's total is the sum over layers, its value that of an average layer.

  Raises:
    ValueError: a pipeline of unrolled layers.
  """
  which = [0] * depth if which is None else which
  builders = [block] * depth if callable(block) else block

  def run(n, module, x_BLD, layer):
    view = views[n] if isinstance(n, int) else attention.choose(n, views)
    if cache is not None:
      layer = {**layer, 'index': cache['index']}
    x_BLD, layer, aux = module(x_BLD, view, layer)
    if layer is not None:
      layer = {k: v for k, v in layer.items() if k != 'index'}
    return sharding.constrain(x_BLD, 'batch', 'length', None), (layer, aux)

  def saving(fn):
    if remat == 'none':
      return fn
    # Inside a scan the loop itself prevents the merging of both passes.
    return nn.remat(fn, policy=remat_policy(remat), prevent_cse=not scan)

  layers = None if cache is None else cache['layers']
  stages = sharding.parts('stage')
  if stages > 1 and not scan:
    raise ValueError(
      f'mesh.stage={stages} needs stacked layers: set model.scan, or stage=1'
    )
  if stages > 1 and cache is None:
    x_BLD, aux = _pipeline(
      builders[0], x_BLD, views, jnp.asarray(which), stages=stages, remat=remat
    )
  elif scan:
    x_BLD, (layers, stacked) = nn.scan(
      saving(lambda module, x, xs: run(xs[1], module, x, xs[0])),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=depth,
    )(builders[0](name='layers'), x_BLD, (layers, jnp.asarray(which)))
    aux = jax.tree.map(lambda m: jnp.sum(m, axis=0), stacked)
  else:
    new, aux = [], {}
    for i in range(depth):
      layer = None if layers is None else layers[i]
      step = saving(partial(run, which[i]))
      module = builders[i](name=f'layers_{i}')
      x_BLD, (layer, found) = step(module, x_BLD, layer)
      new.append(layer)
      aux = metrics.join(aux, found)
    layers = tuple(new)
  if cache is not None:
    # A tuple and not a stack when unrolled: stacking would copy every layer's
    # cache for every token that is generated.
    index = cache['index'] + x_BLD.shape[1]
    cache = {**cache, 'index': index, 'layers': layers}
  return x_BLD, cache, aux


def _pipeline(block, x_BLD, views, which, *, stages, remat):
  """Runs stacked blocks as stages, each on the devices that hold it.

  Rows are cut in M microbatches. At tick t stage s has microbatch t - s, and
  hands what it made of it to the next: all stages are one computation, mapped
  over the dimension of stages, that the mesh cuts. So the backward pass is a
  pipeline too. Of M + stages - 1 ticks stages - 1 are idle; M is the most that
  the rows of a device can be cut in, up to four times the stages.

  Dropout draws other masks than without stages.

  Reference: Huang et al. 2019, arXiv 1811.06965 (GPipe); Xu et al. 2021, arXiv
  2105.04663, section 3.3 (as a shifted buffer).
  """
  layers = block(name='layers')
  rng = layers.make_rng('dropout') if layers.has_rng('dropout') else None
  rows, held = len(x_BLD), len(x_BLD) // sharding.parts(*sharding.BATCH)
  count = max(m for m in range(1, 4 * stages + 1) if held % m == 0)
  alone = block(parent=None)

  def cut(x):
    """Cuts rows into microbatches, strided so that each stays where it is."""
    if len(x) != rows:
      return jnp.broadcast_to(x[None], (count, *x.shape))
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)

  def deal(x):
    """[depth, ...] -> [stages, depth / stages, ...]."""
    return x.reshape(stages, -1, *x.shape[1:])

  def run(carry, xs):
    x_bLD, key, views = carry
    params, n = xs
    rngs = None
    if key is not None:
      key, draw = jax.random.split(key)
      rngs = {'dropout': draw}
    x_bLD, _, aux = alone.apply(
      {'params': params}, x_bLD, attention.choose(n, views), None, rngs=rngs
    )
    x_bLD = sharding.constrain(x_bLD, 'batch', 'length', None)
    return (x_bLD, key, views), aux

  if remat != 'none':
    run = jax.checkpoint(run, policy=remat_policy(remat), prevent_cse=False)

  def stage(params, which, x_bLD, key, views):
    (x_bLD, *_), aux = jax.lax.scan(run, (x_bLD, key, views), (params, which))
    return x_bLD, jax.tree.map(lambda m: jnp.sum(m, axis=0), aux)

  places = jnp.arange(stages)
  x_MbLD, views_M = cut(x_BLD), jax.tree.map(cut, list(views))
  params = jax.tree.map(deal, layers.variables['params'])

  def tick(x_SbLD, t):
    x_SbLD = jnp.roll(x_SbLD, 1, axis=0)
    x_SbLD = x_SbLD.at[0].set(x_MbLD[jnp.minimum(t, count - 1)])
    x_SbLD = sharding.constrain(x_SbLD, 'stage', 'batch', 'length', None)
    turn = t - places
    inside = jnp.clip(turn, 0, count - 1)
    keys = None
    if rng is not None:
      keys = jax.random.split(jax.random.fold_in(rng, t), stages)
    x_SbLD, aux = jax.vmap(stage, spmd_axis_name='stage')(
      params,
      deal(which),
      x_SbLD,
      keys,
      jax.tree.map(lambda x: jnp.take(x, inside, axis=0), views_M),
    )
    x_SbLD = sharding.constrain(x_SbLD, 'stage', 'batch', 'length', None)
    # What a stage makes before its first microbatch and after its last one is
    # of no text.
    real = (turn >= 0) & (turn < count)
    aux = jax.tree.map(lambda m: jnp.sum(jnp.where(real, m, 0)), aux)
    return x_SbLD, (x_SbLD[-1], aux)

  empty = jnp.zeros((stages, *x_MbLD.shape[1:]), x_BLD.dtype)
  _, (y_TbLD, aux) = jax.lax.scan(tick, empty, jnp.arange(count + stages - 1))
  y_MbLD = y_TbLD[stages - 1 :]
  y_BLD = jnp.swapaxes(y_MbLD, 0, 1).reshape(x_BLD.shape)
  aux = jax.tree.map(lambda m: jnp.sum(m, axis=0), aux)
  return sharding.constrain(y_BLD, 'batch', 'length', None), aux


def start(shape: Sequence[int], dtype: str, depth: int, scan: bool) -> Any:
  """Makes the `layers` of a cache of zeros; `shape` is [B, K, S, H]."""
  B, K, S, H = shape
  lead = (depth, B * K) if scan else (B * K,)
  layer = {
    'k': jnp.zeros((*lead, H, S), dtype),
    'v': jnp.zeros((*lead, S, H), dtype),
  }
  return layer if scan else (layer,) * depth


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
