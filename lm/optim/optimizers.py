"""Optimizers for configs: a rule, and what all optimizers share.

  c.optim = {'fn': 'lm.optim.optimizers:make', 'peak': 1e-3, 'warmup': 100,
             'rule': {'fn': 'lm.optim.rules:adamw', 'b2': 0.95}}

A rule (lm/optim/rules.py) says how gradients are scaled. Learning rates,
clipping, weight decay, penalties and freezing are the same for all of them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import config
from lm.optim import (
  averages,
  masks,
  rules,
  schedules,
  spheres,
  spikes,
  stages,
)

ADAMW = {'fn': 'lm.optim.rules:adamw'}


def make(
  *,
  steps: int,
  peak: float,
  rule: Mapping[str, Any] | rules.Rule = ADAMW,
  schedule: str = 'cosine',
  warmup: float = 0,
  final: float = 0.0,
  decay_fraction: float = 0.4,
  cooldown: str = 'linear',
  cooldown_power: float = 1.4,
  clip: float = 1.0,
  spike_factor: float = 0.0,
  l2: float = 0.0,
  l1: float = 0.0,
  decay: float = 0.1,
  decay_mask: str = masks.DECAYED,
  decay_where: str = 'everywhere',
  sphere: str = '',
  matrices: masks.Matrices | None = None,
  freeze: str = '',
  balance_rate: float = 1e-3,
  layer_decay: float = 1.0,
  average: str = '',
  ema_decay: float = 0.999,
  tail: float = 0.2,
  interpolation: float = 0.9,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Makes an optimizer of a rule.

  In this order: refuse a spike; clip the gradient by its global norm; add the
  gradients of the penalties `l2 * |w|^2 / 2` and `l1 * |w|`; scale; add
  `decay * w`; multiply by minus the learning rate. So `decay` is decoupled and
  follows the learning rate, as in `optax.adamw`; penalties are never clipped.
  On a `sphere` updates are made as long as weights after they are scaled, and
  weights get their norm back at the end.

  The state is a dict by the names of these stages, whatever is switched on, so
  that the paths of a checkpoint do not depend on the settings. Only `spikes`,
  the norms of a `sphere` and an `average`, which stands around all the rest,
  are there when they are switched on, and so not to be changed when a run is
  resumed.

  Args:
    steps: updates of the whole run.
    peak: the highest learning rate.
    rule: how gradients are scaled: a rule, or the spec of one.
    schedule: shape of the learning rate, see `schedules.make`, as for warmup,
      final, decay_fraction, cooldown and its power.
    clip: the largest global norm of gradients; 0 leaves them alone.
    spike_factor: an update is dropped if the global norm of its gradient is
      above this times the median over 100 steps, see `spikes.refuse`; 0 drops
      none.
    l2: weight of the penalty on squares.
    l1: weight of the penalty on absolute values.
    decay: weight decay, times the learning rate.
    decay_mask: regex of the paths that `decay`, `l2` and `l1` act on.
    decay_where: 'everywhere', or 'aligned' for elements that the update does
      not push away from 0, which is called cautious. See `stages.cautious`.
    sphere: 'matrix' or 'neuron': hidden matrices, or each of their outputs,
      keep their norm, and the learning rate is relative to it; '' is off. See
      `lm.optim.spheres`.
    matrices: which parameters are on a sphere; None stands for `Model.matrices`
      in a config.
    freeze: regex of the paths that never change and hold no optimizer state;
      '' freezes nothing. Their gradients do not count for `clip`.
    balance_rate: how far a step moves the biases that balance the loads of
      experts; the schedule does not change it. See `stages.balancing`.
    layer_decay: what the learning rate of a block is multiplied by for each
      block above it, and once more; 1 changes nothing. See `stages.layered`.
    average: which average of parameters the run is evaluated and used with:
      'ema', 'tail' or 'schedule_free'; '' is none. See `lm.optim.averages`.
    ema_decay: of 'ema', the weight of the old average.
    tail: of 'tail', the updates at the end whose mean it is; below 1 it is
      their share of `steps`.
    interpolation: of 'schedule_free', the average's part in the parameters.
      Use it with `schedule='constant'`, and with `b1=0` in a rule of Adam.

  Returns:
    The transformation, and its schedule.

  Raises:
    ValueError: a value out of range or a bad regex; when the transformation is
      first used, a regex that matches no parameter.
  """
  own = rule if isinstance(rule, rules.Rule) else config.build(rule)
  for key, value in (
    ('clip', clip),
    ('l2', l2),
    ('l1', l1),
    ('decay', decay),
    ('balance_rate', balance_rate),
  ):
    schedules.check(key, value)
  schedules.check('layer_decay', layer_decay, high=1.0)
  if spike_factor:
    schedules.check('spike_factor', spike_factor, low=1.0)
  rate = schedules.make(
    steps=steps,
    peak=peak,
    schedule=schedule,
    warmup=warmup,
    final=final,
    decay_fraction=decay_fraction,
    cooldown=cooldown,
    cooldown_power=cooldown_power,
  )
  if decay_where not in ('everywhere', 'aligned'):
    raise ValueError(
      f'optim.decay_where={decay_where!r}: use everywhere or aligned'
    )
  matrices = spheres.check(sphere, matrices, layer_decay)
  mask = masks.matching('decay_mask', decay_mask)
  none = optax.identity()
  always = decay_where == 'everywhere'
  add = optax.add_decayed_weights if always else stages.cautious
  unit = [('unit', spheres.unit(sphere, matrices))] if sphere else []
  keep = [('keep', spheres.keep(sphere, matrices))] if sphere else []
  factor = own.factor or (lambda path: 1.0)
  factors = optax.stateless(lambda u, _: masks.multiplied(u, factor))
  sign = optax.stateless(
    lambda u, w: jax.tree.map(lambda u, w: u + l1 * jnp.sign(w), u, w)
  )
  first = [('spikes', spikes.refuse(spike_factor))] if spike_factor else []
  tx = optax.named_chain(
    *first,
    ('clip', optax.clip_by_global_norm(clip) if clip else none),
    ('l2', optax.add_decayed_weights(l2, mask) if l2 else none),
    ('l1', optax.masked(sign, mask) if l1 else none),
    ('scale', own.scale),
    *unit,
    *([('factor', factors)] if own.factor else []),
    ('decay', add(decay, mask) if decay else none),
    ('rates', own.rates(peak)),
    ('rate', optax.scale_by_learning_rate(rate)),
    *keep,
  )
  tx = stages.balancing(tx, balance_rate)
  if freeze:
    frozen = masks.matching('freeze', freeze)
    tx = optax.partition(
      {'train': tx, 'freeze': optax.set_to_zero()},
      lambda params: jax.tree.map(
        lambda x: 'freeze' if x else 'train', frozen(params)
      ),
    )
  if layer_decay != 1:
    tx = stages.layered(tx, layer_decay)
  match average:
    case '':
      pass
    case 'ema':
      schedules.check('ema_decay', ema_decay, high=1.0)
      tx = averages.mean(tx, decay=ema_decay, freeze=freeze)
    case 'tail':
      start = averages.tail_start(steps, tail)
      tx = averages.mean(tx, start=start, freeze=freeze)
    case 'schedule_free':
      averages.check(schedule, own.momentum, sphere, interpolation)
      tx = averages.schedule_free(
        tx, rate, interpolation=interpolation, freeze=freeze
      )
    case _:
      raise ValueError(
        f'optim.average={average!r}: use ema, tail or schedule_free'
      )
  return tx, rate
