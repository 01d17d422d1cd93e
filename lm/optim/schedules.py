"""Learning rates as functions of the step: a linear warmup, then a shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Steps compute in float32, where larger numbers are infinite and smaller ones
# are flushed to 0.
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)


def check(
  key: str, value: float, low: float = 0.0, high: float = LARGEST
) -> None:
  """Refuses a setting that is not a number from `low` to `high`.

  Raises:
    ValueError: names the key, the value and the range.
  """
  if not low <= value <= high:
    raise ValueError(
      f'optim.{key}={value}: give a number from {low:g} to {high:g}'
    )


def make(
  *,
  steps: int,
  peak: float,
  schedule: str,
  warmup: float = 0,
  final: float = 0.0,
  decay_fraction: float = 0.4,
  cooldown: str = 'linear',
  cooldown_power: float = 1.4,
) -> optax.Schedule:
  """Makes a learning-rate schedule.

  Warmup is `peak * (step + 1) / (warmup + 1)`: the first update is never void,
  and step `warmup` is the first at `peak`. The shapes after it:

    constant: `peak`.
    cosine: half a cosine from `peak` to `final * peak` at `steps`.
    linear: a line between the same points.
    rsqrt: `peak * sqrt(max(warmup, 1) / step)`, not below `final * peak`. It
      does not depend on `steps`, so a run can be extended.
    wsd: warmup, stable, decay: `peak`, then a cooldown to `final * peak` over
      the last `decay_fraction * steps` steps.

  Args:
    steps: updates of the whole run, warmup included.
    peak: the highest learning rate.
    schedule: `constant`, `cosine`, `linear`, `rsqrt` or `wsd`.
    warmup: updates below `peak` at the start; below 1 it is their share of
      `steps`, rounded to whole updates.
    final: the rate at `steps` as a fraction of `peak`.
    decay_fraction: the cooldown's part of all steps; `wsd` only.
    cooldown: `linear`, `sqrt` (1 - sqrt(progress)) or `power`; `wsd` only.
    cooldown_power: p of (1 - progress)^p; `power` only, where 1 is a line.

  Returns:
    `step -> learning rate`, for Python integers and traced ones.

  Raises:
    ValueError: a value is out of range, or warmup and cooldown overlap.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 5.3 (rsqrt); Hägele
    et al. 2024, arXiv 2405.18392, section 3 (wsd and its cooldowns). The power
    1.4 is that of records of modded-nanogpt, track 3.
  """
  check('steps', steps, 1, 2**31 - 1)  # the step is an int32
  check('peak', peak, low=1e-12)
  check('final', final, 0, 1)
  check('decay_fraction', decay_fraction, 0, 1)
  check('cooldown_power', cooldown_power, SMALLEST)
  warmup = updates('warmup', warmup, steps)
  after = max(steps - warmup, 1)
  floor = final * peak
  match schedule:
    case 'constant':
      body = optax.constant_schedule(peak)
    case 'cosine':
      body = optax.cosine_decay_schedule(peak, after, alpha=final)
    case 'linear':
      body = optax.linear_schedule(peak, floor, after)
    case 'rsqrt':
      body = _rsqrt(peak, floor, max(warmup, 1))
    case 'wsd':
      length = round(decay_fraction * steps)
      if warmup + length > steps:
        raise ValueError(
          f'optim.decay_fraction={decay_fraction}: warmup={warmup} and the'
          f' cooldown of {length} steps exceed steps={steps}: lower one, or'
          ' raise steps'
        )
      body = optax.join_schedules(
        [
          optax.constant_schedule(peak),
          _cooldown(cooldown, cooldown_power, peak, floor, length),
        ],
        [steps - length - warmup],
      )
    case _:
      raise ValueError(
        f'optim.schedule={schedule!r}: use constant, cosine, linear, rsqrt, wsd'
      )
  if not warmup:
    return body
  ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([ramp, body], [warmup])


def updates(key: str, value: float, steps: int) -> int:
  """Counts the updates that a setting stands for: a share of `steps` below 1.

  Raises:
    ValueError: it is neither a share nor a whole number up to `steps`.
  """
  check(key, value, 0, steps)
  if value < 1:
    return round(value * steps)
  if value != int(value):
    raise ValueError(
      f'optim.{key}={value}: give a whole number of steps, or below 1 their '
      'share of all'
    )
  return int(value)


def at_step(opt_state: Any, step: jax.typing.ArrayLike) -> Any:
  """Makes the schedules in an optimizer's state go on from a step of the run.

  By themselves they count the updates that were applied, so that after a
  dropped one they would lag behind, and not reach their end. What counts for
  another purpose stays as it is: the bias correction of Adam goes by the number
  of gradients in its averages.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  return jax.tree.map(
    lambda node: node._replace(count=step) if is_schedule(node) else node,
    opt_state,
    is_leaf=is_schedule,
  )


def _rsqrt(peak: float, floor: float, start: int) -> optax.Schedule:
  def fall(count: jax.typing.ArrayLike) -> jax.Array:
    # Clipped below for the branch that join_schedules computes and drops: it
    # asks for this during warmup too, with negative counts.
    after = start + jnp.maximum(count, 0)
    return jnp.maximum(peak * jnp.sqrt(start / after), floor)

  return fall


def _cooldown(
  shape: str, power: float, peak: float, floor: float, length: int
) -> optax.Schedule:
  length = max(length, 1)

  def progress(count: jax.typing.ArrayLike) -> jax.Array:
    # Clipped below for the branch that join_schedules computes and drops: it
    # asks for this before the cooldown too, with negative counts.
    return jnp.clip(count / length, 0.0, 1.0)

  def sqrt(count: jax.typing.ArrayLike) -> jax.Array:
    return floor + (peak - floor) * (1 - jnp.sqrt(progress(count)))

  def powered(count: jax.typing.ArrayLike) -> jax.Array:
    return floor + (peak - floor) * (1 - progress(count)) ** power

  match shape:
    case 'linear':
      return optax.linear_schedule(peak, floor, length)
    case 'sqrt':
      return sqrt
    case 'power':
      return powered
    case _:
      raise ValueError(f'optim.cooldown={shape!r}: use linear, sqrt or power')
