"""Averages of the parameters, kept while they are trained.

A run that keeps one is used by it: `of` selects what its evaluators get, and
`checkpoint.restore_params` reads the average too. The parameters that are
trained stay beside it, so that a run goes on as if there were no average. It is
float32, has no frozen parameters, and is in the optimizer's state at
`average/<path of the parameter>`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import tree, types
from lm.optim import masks, schedules


def of(state: types.TrainState) -> types.Params:
  """Selects the parameters that a run is used with: averages where it has them.

  They have the types of the parameters that are trained.
  """
  held = state.opt_state if isinstance(state.opt_state, dict) else {}
  average = held.get('average', {})
  return tree.map_paths(
    lambda path, w: average.get(path, w).astype(w.dtype), state.params
  )


def mean(
  tx: optax.GradientTransformation,
  *,
  decay: float = 1.0,
  start: int = 0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Keeps a mean of the parameters after each update.

  The newest ones have the weight `1 - decay`, and of the first N updates
  `1 / N`, where that is more: the average does not lean to where it began. With
  a `decay` of 1 it is the plain mean. A dropped update counts for nothing.

  Args:
    tx: the optimizer.
    decay: weight of the old average.
    start: the first step whose result is averaged; before, there are the
      parameters themselves.
    freeze: regex of the paths that are left out; '' leaves out none.

  Reference: Polyak and Juditsky 1992, SIAM J. Control Optim. 30(4), for the
    plain mean; Jain et al. 2018, arXiv 1610.03774, for that of the last steps;
    Morales-Brotons et al. 2024, arXiv 2411.18704, for the one that forgets.
  """

  def init(params: Any) -> dict[str, Any]:
    return {
      'of': tx.init(params),
      'average': _chosen(params, freeze),
      'count': jnp.zeros((), jnp.int32),
      'step': optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)),
    }

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    updates, inner = tx.update(updates, state['of'], params)
    new = dict(tree.paths(optax.apply_updates(params, updates)))
    step = state['step'].count
    count = jnp.where(step >= start, optax.safe_increment(state['count']), 0)
    weight = jnp.maximum(1 - decay, 1 / jnp.maximum(count, 1))

    def move(path: str, old: jax.Array) -> jax.Array:
      w = new[path].astype(old.dtype)
      return jnp.where(count > 1, old + weight * (w - old), w)

    return updates, {
      'of': inner,
      'average': {k: move(k, x) for k, x in state['average'].items()},
      'count': count,
      'step': optax.ScaleByScheduleState(step + 1),
    }

  return optax.GradientTransformation(init, update)


def schedule_free(
  tx: optax.GradientTransformation,
  rate: Callable[[jax.Array], Any],
  *,
  interpolation: float = 0.9,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Trains without a schedule, at points between an iterate and its average.

  `tx` moves the iterate z by gradients at y, which are the parameters of the
  run. The average x weighs z after each update by the square of its learning
  rate. Then `y = (1 - interpolation) * z + interpolation * x`.

  Args:
    tx: the optimizer, without momentum: the average is its momentum.
    rate: from the step to the learning rate, in any unit.
    interpolation: beta of the paper.
    freeze: regex of the paths that are left out; '' leaves out none.

  Reference: Defazio et al. 2024, arXiv 2405.15682, algorithm 1 and section 4.
    Weight decay acts at y.
  """

  def init(params: Any) -> dict[str, Any]:
    return {
      'of': tx.init(params),
      'average': _chosen(params, freeze),
      'iterate': _chosen(params, freeze),
      'weight': jnp.zeros((), jnp.float32),
      'step': optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)),
    }

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    updates, inner = tx.update(updates, state['of'], params)
    by = dict(tree.paths(updates))
    step = state['step'].count
    weight = jnp.square(jnp.asarray(rate(step), jnp.float32))
    total = state['weight'] + weight
    share = weight / jnp.maximum(total, schedules.SMALLEST)
    iterate = {k: z + by[k] for k, z in state['iterate'].items()}
    average = {
      k: x + share * (iterate[k] - x) for k, x in state['average'].items()
    }

    def change(path: str, update: jax.Array, w: jax.Array) -> jax.Array:
      if path not in average:
        return update
      z, x = iterate[path], average[path]
      return x + (1 - interpolation) * (z - x) - w

    return tree.map_paths(change, updates, params), {
      'of': inner,
      'average': average,
      'iterate': iterate,
      'weight': total,
      'step': optax.ScaleByScheduleState(step + 1),
    }

  return optax.GradientTransformation(init, update)


def tail_start(steps: int, tail: float) -> int:
  """Returns the first step whose result is in the mean of a tail.

  Args:
    steps: of the whole run.
    tail: its length in updates; below 1 their share of `steps`.
  """
  return steps - max(schedules.updates('tail', tail, steps), 1)


def check(
  schedule: str, momentum: float, sphere: str, interpolation: float
) -> None:
  """Refuses what takes the place of `schedule_free` or does not go with it.

  Raises:
    ValueError: names the setting.
  """
  schedules.check('interpolation', interpolation, 0, 1)
  free = "optim.average='schedule_free'"
  if schedule != 'constant':
    raise ValueError(
      f'{free} takes the place of optim.schedule={schedule!r}: set it to '
      "'constant'"
    )
  if momentum:
    raise ValueError(
      f'{free} takes the place of momentum, and the rule has {momentum:g}: set '
      'its b1 or momentum to 0, or use a rule without'
    )
  if sphere:
    raise ValueError(
      f'{free} leaves the sphere of optim.sphere={sphere!r}: set one to empty'
    )


def _chosen(params: types.Params, freeze: str) -> dict[str, jax.Array]:
  """Copies what is trained, by path, as float32."""
  frozen = masks.compile_regex('freeze', freeze) if freeze else None
  return {
    path: jnp.array(w, jnp.float32)
    for path, w in tree.paths(params)
    if frozen is None or not frozen.search(path)
  }
