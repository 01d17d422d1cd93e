"""Depth: kinds of block in their order, unrolled or scanned, with remat."""

from collections.abc import Callable, Mapping, Sequence
import difflib
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, metrics, sharding, types
from lm.layers import parts

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


class Repeat(NamedTuple):
  """A group of blocks, scanned `times`."""

  kinds: tuple[str, ...]
  times: int


# Names of what runs one after another: blocks by their kind, or a `Repeat`.
Layers = tuple[tuple[str, str | Repeat], ...]


class Stack(NamedTuple):
  """Blocks of some kinds, one after another.

  Attributes:
    kinds: by name.
    layers: what runs, see `layout`.
    remat: what the backward pass need not compute again, see `remat_policy`.
  """

  kinds: Mapping[str, parts.Kind]
  layers: Layers
  remat: str

  def unrolled(self) -> 'Stack':
    """Returns the same blocks without a scan."""
    kinds = []
    for _, what in self.layers:
      kinds += what.kinds * what.times if isinstance(what, Repeat) else [what]
    layers = [(f'layers_{n}', kind) for n, kind in enumerate(kinds)]
    return self._replace(layers=tuple(layers))

  def rows(self) -> tuple[parts.Row, ...]:
    """Lists the rows of all kinds, and of the modules that they share."""
    rows = [
      row
      for kind in self.kinds.values()
      for row in (
        *kind.rows,
        *(row for x in kind.commons for row in parts.below(x.name, x.rows)),
      )
    ]
    return tuple(dict.fromkeys(rows))

  def flops(self, length: int) -> float:
    """Counts the FLOPs that the forward pass of all blocks needs a token."""
    return sum(
      self.kinds[str(kind)].flops(length) for _, kind in self.unrolled().layers
    )

  def start(self, params: types.Params, text: parts.Text, room: int) -> Any:
    """Makes the caches of all blocks, by the names of their parameters."""

    def one(kind, params):
      return self.kinds[kind].start(params, text, room)

    return {
      name: {
        str(n): jax.vmap(partial(one, kind))(params[name][str(n)])
        for n, kind in enumerate(what.kinds)
      }
      if isinstance(what, Repeat)
      else one(what, params[name])
      for name, what in self.layers
    }


def make(
  shared: parts.Shared,
  blocks: Mapping[str, Mapping[str, Any]],
  pattern: Sequence[str],
  first: Sequence[str] = (),
  *,
  scan: bool = False,
  remat: str = 'none',
) -> Stack:
  """Makes a stack of `shared.depth` blocks.

  Args:
    shared: what the model's parts have in common.
    blocks: specs of kinds of block, by name.
    pattern: kinds, repeated to the depth. If the depth is no multiple of it,
      the last blocks are its beginning.
    first: kinds of the first blocks, before the pattern.
    scan: scans the whole repetitions of the pattern. They compile once,
      whatever their number, and keep their parameters stacked under `layers`;
      unrolled blocks (`layers_0`, ...) run 8-14 % faster on CPU at 4-8 layers
      and give the compiler more to fuse on GPU. Blocks that fill no repetition
      stay unrolled.
    remat: 'none', or a policy, see `remat_policy`.

  Raises:
    ValueError: for a block that cannot be made, or a name that is not there.
  """
  if remat != 'none':
    remat_policy(remat)
  for key, names in (('pattern', pattern), ('first', first)):
    if isinstance(names, str):
      raise ValueError(f'{key}={names!r} must be a tuple of names of blocks')
    for name in names:
      if name not in blocks:
        raise ValueError(
          f'{key}: no block {name!r}{config.did_you_mean(name, blocks)}'
        )
  if not pattern:
    raise ValueError('pattern: names no block')
  if len(first) > shared.depth:
    raise ValueError(
      f'first: names {len(first)} blocks, more than depth={shared.depth}'
    )
  kinds = {}
  for name, spec in blocks.items():
    try:
      kinds[name] = config.build(spec, shared=shared)
    except ValueError as error:
      raise ValueError(f'blocks.{name}: {error}') from error
  layers = layout(shared.depth, tuple(pattern), tuple(first), scan)
  return Stack(kinds, layers, remat)


def layout(
  depth: int, pattern: tuple[str, ...], first: tuple[str, ...], scan: bool
) -> Layers:
  """Names what a stack runs; see `make`."""
  count = len(pattern)
  kinds = [*first, *(pattern[n % count] for n in range(depth - len(first)))]
  times = (depth - len(first)) // count if scan else 0
  alone = [(f'layers_{n}', kind) for n, kind in enumerate(kinds)]
  if not times:
    return tuple(alone)
  start, stop = len(first), len(first) + times * count
  return *alone[:start], ('layers', Repeat(pattern, times)), *alone[stop:]


def run(
  stack: Stack,
  module: nn.Module,
  x_BLD: jax.Array,
  text: parts.Text,
  caches: Any,
) -> tuple[jax.Array, Any, dict[str, types.Metric]]:
  """Runs the blocks inside the module that calls it.

  Over the mesh axis `stage` scanned groups are dealt out and run as a pipeline;
  see `_pipeline`.

  Args:
    stack: the blocks.
    module: the caller, whose compact method this is called in.
    x_BLD: the stream.
    text: what blocks may know of the text.
    caches: of `Stack.start`; None keeps nothing.

  Returns:
    [B, L, D], the new caches, and what the blocks measure, merged over layers:
    the value of a loss is the sum over layers, that of another metric is the
    value of an average layer.

  Raises:
    ValueError: a pipeline of unrolled blocks, or a text that a block cannot
      read.
  """
  used = {
    kind: stack.kinds[kind]
    for _, what in stack.layers
    for kind in (what.kinds if isinstance(what, Repeat) else (what,))
  }
  values = {
    common.name: common.build(name=common.name)(text)
    for common in {
      x.name: x for kind in used.values() for x in kind.commons
    }.values()
  }
  seen = {}
  for name, kind in used.items():
    try:
      seen[name] = kind.see(text, module.is_initializing(), values)
    except ValueError as error:
      raise ValueError(f'blocks.{name}: {error}') from error
  stages = sharding.parts('stage')
  if stages > 1 and not any(isinstance(x, Repeat) for _, x in stack.layers):
    raise ValueError(
      f'mesh.stage={stages} needs stacked layers: set model.scan, or stage=1'
    )
  new, found = {}, {}
  for name, what in stack.layers:
    old = None if caches is None else caches[name]
    if isinstance(what, Repeat):
      builders = tuple((kind, used[kind].build) for kind in what.kinds)
      group = partial(Group, blocks=builders, remat=stack.remat)
      x_BLD, new[name], more = _repeat(
        group, what.times, x_BLD, (seen, text), old
      )
    else:
      step = _saving(stack.remat, seen[what], text, scanned=False)
      x_BLD, new[name], more = step(used[what].build(name=name), x_BLD, old)
    found = metrics.join_layers(found, more)
  return x_BLD, None if caches is None else new, found


class Group(nn.Module):
  """One repetition of a pattern; its blocks are named by their places.

  Attributes:
    blocks: kinds and builders of blocks, in order.
    remat: of each block.
  """

  blocks: tuple[tuple[str, Callable[..., nn.Module]], ...]
  remat: str

  @nn.compact
  def __call__(self, x_BLD, given, caches):
    """Returns [B, L, D], the new caches and metrics."""
    seen, text = given
    new, found = {}, {}
    for n, (kind, block) in enumerate(self.blocks):
      name = str(n)
      step = _saving(self.remat, seen[kind], text, scanned=True)
      old = None if caches is None else caches[name]
      x_BLD, new[name], more = step(block(name=name), x_BLD, old)
      found = metrics.join_layers(found, more)
    return x_BLD, None if caches is None else new, found


def _saving(remat, seen, text, scanned):
  """Makes a function that runs a block, with rematerialization."""

  def step(block, x_BLD, cache):
    x_BLD, cache, found = block(x_BLD, seen, text, cache)
    return sharding.constrain(x_BLD, 'batch', 'length', None), cache, found

  if remat == 'none':
    return step
  # Around each block, not around a group: else the backward pass would hold
  # all that a whole repetition computes. Inside a scan the loop itself prevents
  # the merging of both passes.
  return nn.remat(step, policy=remat_policy(remat), prevent_cse=not scanned)


def _repeat(group, times, x_BLD, given, caches):
  """Runs a group so many times, by a scan or as a pipeline."""
  stages = sharding.parts('stage')
  if stages > 1 and caches is None:
    if times % stages:
      raise ValueError(
        f'mesh.stage={stages} does not divide {times} repetitions of the '
        'pattern: change depth, pattern or mesh'
      )
    x_BLD, found = _pipeline(group, x_BLD, given, stages)
    return x_BLD, None, found

  def step(module, x_BLD, caches):
    x_BLD, caches, found = module(x_BLD, given, caches)
    return x_BLD, (caches, found)

  x_BLD, (caches, stacked) = nn.scan(
    step,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    length=times,
  )(group(name='layers'), x_BLD, caches)
  return x_BLD, caches, metrics.merge_layers(stacked)


def _pipeline(group, x_BLD, given, stages):
  """Runs stacked groups as stages, each on the devices that hold it.

  Rows are cut in M microbatches. At tick t stage s has microbatch t - s, and
  hands what it made of it to the next: all stages are one computation, mapped
  over the dimension of stages, that the mesh cuts. So the backward pass is a
  pipeline too. Of M + stages - 1 ticks stages - 1 are idle; M is the most that
  the rows of a device can be cut in, up to four times the stages.

  Dropout draws other masks than without stages.

  Reference: Huang et al. 2019, arXiv 1811.06965 (GPipe); Xu et al. 2021, arXiv
  2105.04663, section 3.3 (as a shifted buffer).
  """
  layers = group(name='layers')
  rng = layers.make_rng('dropout') if layers.has_rng('dropout') else None
  rows, held = len(x_BLD), len(x_BLD) // sharding.parts(*sharding.BATCH)
  count = max(m for m in range(1, 4 * stages + 1) if held % m == 0)
  alone = group(parent=None)

  def cut(x):
    """Cuts rows into microbatches, strided so that each stays where it is."""
    if len(x) != rows:
      return jnp.broadcast_to(x[None], (count, *x.shape))
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)

  def deal(x):
    """[times, ...] -> [stages, times / stages, ...]."""
    return x.reshape(stages, -1, *x.shape[1:])

  def run(carry, params):
    x_bLD, key, given = carry
    rngs = None
    if key is not None:
      key, draw = jax.random.split(key)
      rngs = {'dropout': draw}
    x_bLD, _, aux = alone.apply(
      {'params': params}, x_bLD, given, None, rngs=rngs
    )
    return (x_bLD, key, given), aux

  def stage(params, x_bLD, key, given):
    (x_bLD, *_), aux = jax.lax.scan(run, (x_bLD, key, given), params)
    return x_bLD, metrics.merge_layers(aux)

  places = jnp.arange(stages)
  x_MbLD, given_M = cut(x_BLD), jax.tree.map(cut, given)
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
      x_SbLD,
      keys,
      jax.tree.map(lambda x: jnp.take(x, inside, axis=0), given_M),
    )
    x_SbLD = sharding.constrain(x_SbLD, 'stage', 'batch', 'length', None)
    # What a stage makes before its first microbatch and after its last one is
    # of no text.
    real = (turn >= 0) & (turn < count)
    aux = jax.tree.map(lambda m: jnp.where(real, m, 0), aux)
    return x_SbLD, (x_SbLD[-1], metrics.merge_layers(aux))

  empty = jnp.zeros((stages, *x_MbLD.shape[1:]), x_BLD.dtype)
  _, (y_TbLD, aux) = jax.lax.scan(tick, empty, jnp.arange(count + stages - 1))
  y_MbLD = y_TbLD[stages - 1 :]
  y_BLD = jnp.swapaxes(y_MbLD, 0, 1).reshape(x_BLD.shape)
  aux = jax.tree.map(lambda m: jnp.sum(m, axis=0), aux)
  return sharding.constrain(y_BLD, 'batch', 'length', None), aux


def stack_params(
  params: types.Params,
  layers: Layers,
  join: Callable[[Sequence[Any]], Any] = jnp.stack,
) -> types.Params:
  """Turns the parameters of unrolled blocks into those of a layout.

  Args:
    params: of unrolled blocks.
    layers: the layout.
    join: stacks the same parameter of several blocks.
  """
  params, n = dict(params), 0
  for name, what in layers:
    if not isinstance(what, Repeat):
      n += 1
      continue
    count = len(what.kinds)
    params[name] = {
      str(place): jax.tree.map(
        lambda *leaves: join(leaves),
        *(
          params.pop(f'layers_{n + turn * count + place}')
          for turn in range(what.times)
        ),
      )
      for place in range(count)
    }
    n += what.times * count
  return params


def unstack_params(params: types.Params) -> types.Params:
  """Undoes `stack_params`."""
  if 'layers' not in params:
    return params
  params = dict(params)
  groups = params.pop('layers')
  first = 0
  while f'layers_{first}' in params:
    first += 1
  for place in range(len(groups)):
    group = groups[str(place)]
    for turn in range(jax.tree.leaves(group)[0].shape[0]):
      params[f'layers_{first + turn * len(groups) + place}'] = jax.tree.map(
        lambda leaf, turn=turn: leaf[turn], group
      )
  return params
