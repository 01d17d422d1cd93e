"""Norms by layer: of gradients, parameters and updates.

With `log.norms_every` the training step measures them at the steps that it
divides, inside the compiled update and on the device, where gradients are. A
group is the part of a block, such as `layers_3/attention`, or what stands
beside the blocks, such as `embed`. A stack of scanned blocks is one array, and
still gives a number for each of its layers.

Nothing that trains reads what is measured here, and a barrier stands before it:
the update has the same bits with and without.
"""

from collections.abc import Callable
import contextvars
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import tree, types
from lm.optim import masks

NAME = 'norms'  # of the metric
_PART = re.compile(r'(.*/)?(layers(?:_\d+|/\d+))/([^/]+)')  # of a block
# Set while the update is traced: 0 measures nothing.
_EVERY: contextvars.ContextVar[int] = contextvars.ContextVar('every', default=0)


def measuring(update: Callable[..., Any], every: int) -> Callable[..., Any]:
  """Returns an update that measures norms at the steps that `every` divides."""
  if not every:
    return update

  @functools.wraps(update)
  def call(*args: Any, **kw: Any) -> Any:
    token = _EVERY.set(every)
    try:
      return update(*args, **kw)
    finally:
      _EVERY.reset(token)

  return call


def norms(
  state: types.TrainState, grads: types.Params, params: types.Params
) -> dict[str, types.Metric]:
  """Measures norms, if the update that is traced is to.

  Args:
    state: before the update.
    grads: its gradients, before they are clipped.
    params: after the update; those of `state` if it is dropped.

  Returns:
    Under `NAME`, an array [3, groups] of the norms of gradients, parameters and
    updates, whose weight is 1 at the steps that are measured and else 0.
  """
  every = _EVERY.get()
  if not every:
    return {}

  def measure(grads, old, new):
    moves = jax.tree.map(lambda x, y: x.astype(jnp.float32) - y, new, old)
    return jnp.sqrt(jnp.stack([_squares(x) for x in (grads, old, moves)]))

  trees = jax.lax.optimization_barrier((grads, state.params, params))
  empty = jax.eval_shape(measure, *trees)
  due = (state.step + 1) % every == 0
  values = jax.lax.cond(
    due, measure, lambda *_: jnp.zeros(empty.shape, empty.dtype), *trees
  )
  return {NAME: types.Metric(values, due.astype(jnp.float32))}


def named(
  metric: types.Metric | None, like: types.TrainState
) -> dict[str, float]:
  """Names what `norms` has measured; {} at a step without.

  Args:
    metric: on the host; None if nothing is measured.
    like: shapes of the state.

  Returns:
    By group `grad_norm/`, `param_norm/` and `update_ratio/`: the norm of the
    update by that of the parameters, which is left out where they are all zero.
  """
  if metric is None or not metric.weight:
    return {}
  found = {}
  names = [name for names, _ in _families(like.params) for name in names]
  rows = np.asarray(metric.total, np.float64).T
  for name, (grad, param, update) in zip(names, rows, strict=True):
    found[f'grad_norm/{name}'] = float(grad)
    found[f'param_norm/{name}'] = float(param)
    if param:
      found[f'update_ratio/{name}'] = float(update / param)
  return found


def _families(params: types.Params) -> list[tuple[list[str], list[str]]]:
  """Lists groups that are measured together: their names, and their paths.

  That is one group, or the same part of all blocks of a stack.
  """
  numbers = masks.blocks(params)
  families: dict[str, tuple[list[str], list[str]]] = {}
  for path, _ in tree.paths(params):
    if match := _PART.match(path):
      scope, part = match[1] or '', match[3]
      key = match[0]
      names = [f'{scope}layers_{n}/{part}' for n in numbers[path]]
    else:
      key = path.rpartition('/')[0] or path
      names = [key]
    families.setdefault(key, (names, []))[1].append(path)
  return list(families.values())


def _squares(values: types.Params) -> jax.Array:
  """Sums squares by group, in the order of `_families`."""
  leaves = dict(tree.paths(values))
  sums = []
  for names, paths in _families(values):
    count = len(names)
    squares = (
      jnp.sum(
        jnp.square(leaves[path].astype(jnp.float32)).reshape(
          count, math.prod(leaves[path].shape) // count
        ),
        axis=1,
      )
      for path in paths
    )
    sums.append(functools.reduce(jnp.add, squares))
  return jnp.concatenate(sums)
