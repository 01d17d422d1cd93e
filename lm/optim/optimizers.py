"""Optimizers for configs: each returns a transformation and its schedule.

All share one chain, described at `_chain`; an optimizer only says how it
scales gradients. In a config:

  c.optim = {'fn': 'lm.optim.optimizers:adamw', 'peak': 1e-3, 'warmup': 100}
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm import tree, types
from lm.optim import factored, masks, schedules

Optimizer = tuple[optax.GradientTransformation, optax.Schedule]

# Newton-Schulz coefficients, one row an iteration: they bring singular values
# above 1/400 of the norm into [0.97, 1.15], where the constant (3.4445,
# -4.7750, 2.0315) of the first Muon swings between 0.68 and 1.20.
# Reference: Amsel et al. 2025, arXiv 2505.16932; the values are Dion's.
_NEWTON_SCHULZ = (
  (4.0848, -6.8946, 2.9270),
  (3.9505, -6.3029, 2.6377),
  (3.7418, -5.5913, 2.3037),
  (2.8769, -3.1427, 1.2046),
  (2.8366, -3.0525, 1.2012),
)

# Of first moments. In bfloat16 a second moment would stand still: at b2 = 0.95
# a step moves it by 5 %, at 0.999 by less than its last bit.
_MOMENTS = ('float32', 'bfloat16')


class _Parts(NamedTuple):
  """The part of an optimizer that differs from the others.

  Attributes:
    scale: from gradients to updates of unit size, pointing uphill.
    rates: applied after weight decay; factors on learning rates.
  """

  scale: optax.GradientTransformation
  rates: optax.GradientTransformation = optax.identity()


def _chain(
  parts: _Parts,
  *,
  steps: int,
  peak: float,
  schedule: str = 'cosine',
  warmup: int = 0,
  final: float = 0.0,
  decay_fraction: float = 0.4,
  cooldown: str = 'linear',
  clip: float = 1.0,
  l2: float = 0.0,
  l1: float = 0.0,
  decay: float = 0.1,
  decay_mask: str = masks.DECAYED,
  freeze: str = '',
  balance_rate: float = 1e-3,
  layer_decay: float = 1.0,
) -> Optimizer:
  """Builds what all optimizers share.

  In this order: clip the gradient by its global norm; add the gradients of the
  penalties `l2 * |w|^2 / 2` and `l1 * |w|`; scale; add `decay * w`; multiply by
  minus the learning rate. So `decay` is decoupled and follows the learning
  rate, as in `optax.adamw`, and penalties are never clipped.

  The state is a dict by the names of these stages, whatever is switched on, so
  that the paths of a checkpoint do not depend on the settings.

  Args:
    parts: the optimizer's own.
    steps: see `schedules.make`, as for peak, schedule, warmup, final,
      decay_fraction and cooldown.
    clip: the largest global norm of gradients; 0 leaves them alone.
    decay_mask: regex of the paths that `decay`, `l2` and `l1` act on.
    freeze: regex of the paths that never change and hold no optimizer state;
      '' freezes nothing. Their gradients do not count for `clip`.
    balance_rate: how far a step moves the biases that balance the loads of
      experts; the schedule does not change it. See `_balancing`.
    layer_decay: what the learning rate of a block is multiplied by for each
      block above it, and once more; 1 changes nothing. See `_layered`.

  Raises:
    ValueError: a value out of range or a bad regex; when the transformation is
      first used, a regex that matches no parameter.
  """
  for key, value in (
    ('clip', clip),
    ('l2', l2),
    ('l1', l1),
    ('decay', decay),
    ('balance_rate', balance_rate),
  ):
    schedules.check(key, value)
  schedules.check('layer_decay', layer_decay, high=1.0)
  rate = schedules.make(
    steps=steps,
    peak=peak,
    schedule=schedule,
    warmup=warmup,
    final=final,
    decay_fraction=decay_fraction,
    cooldown=cooldown,
  )
  mask = masks.matching('decay_mask', decay_mask)
  none = optax.identity()
  sign = optax.stateless(
    lambda u, w: jax.tree.map(lambda u, w: u + l1 * jnp.sign(w), u, w)
  )
  tx = optax.named_chain(
    ('clip', optax.clip_by_global_norm(clip) if clip else none),
    ('l2', optax.add_decayed_weights(l2, mask) if l2 else none),
    ('l1', optax.masked(sign, mask) if l1 else none),
    ('scale', parts.scale),
    ('decay', optax.add_decayed_weights(decay, mask) if decay else none),
    ('rates', parts.rates),
    ('rate', optax.scale_by_learning_rate(rate)),
  )
  tx = _balancing(tx, balance_rate)
  if freeze:
    frozen = masks.matching('freeze', freeze)
    tx = optax.partition(
      {'train': tx, 'freeze': optax.set_to_zero()},
      lambda params: jax.tree.map(
        lambda x: 'freeze' if x else 'train', frozen(params)
      ),
    )
  return (tx if layer_decay == 1 else _layered(tx, layer_decay)), rate


def _balancing(
  tx: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
  """Moves `masks.BALANCING` by the sign of its gradient, and by nothing else.

  Such a gradient is the error of an expert's load: `moe.measure`. `tx` is shown
  zeros instead: they count for no norm, and leave its state's paths as they are
  without such a parameter.

  Reference: Wang et al. 2024, arXiv 2408.15664, algorithm 1.
  """

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    def hide(path: str, update: jax.Array) -> jax.Array:
      return jnp.zeros_like(update) if masks.is_balancing(path) else update

    def show(path: str, new: jax.Array, update: jax.Array) -> jax.Array:
      return -rate * jnp.sign(update) if masks.is_balancing(path) else new

    new, state = tx.update(tree.map_paths(hide, updates), state, params)
    return tree.map_paths(show, new, updates), state

  return optax.GradientTransformation(tx.init, update)


def _layered(
  tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
  """Multiplies the rates of what is far below the output.

  Of N blocks that with number n (from 0) by `decay ** (N - n)`, of a stack by a
  vector; embeddings by `decay ** (N + 1)`; what is above the blocks by 1. Where
  there are several stacks, N is that of the deepest. It stands around `tx`, and
  sees frozen blocks too; the state's paths are those of `tx`.

  Reference: Howard and Ruder 2018, arXiv 1801.06146, section 3.2; Clark et al.
    2020, arXiv 2003.10555, appendix B, whose code multiplies once more.
  """

  def depth(numbers: dict[str, range]) -> int:
    return max((max(x) + 1 for x in numbers.values() if x), default=0)

  def init(params: Any) -> Any:
    if not depth(masks.blocks(params)):
      raise ValueError(
        f'optim.layer_decay={decay}: no parameter is in a layer: set it to 1'
      )
    return tx.init(params)

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    known = masks.blocks(updates)
    top = depth(known)

    def slower(path: str, update: jax.Array) -> jax.Array:
      numbers = known[path] or ([-1] if masks.is_embedding(path) else [top])
      if masks.is_balancing(path):
        return update
      rates = jnp.asarray([decay ** (top - n) for n in numbers], update.dtype)
      return update * rates.reshape(-1, *(1 for _ in update.shape[1:]))

    new, state = tx.update(updates, state, params)
    return tree.map_paths(slower, new), state

  return optax.GradientTransformation(init, update)


def _optimizer(parts: Callable[..., _Parts]) -> Callable[..., Optimizer]:
  """Joins an optimizer's own settings with those of `_chain`.

  The signature lists both, so that configs are checked against all of them.
  """
  own = inspect.signature(parts).parameters
  shared = dict(inspect.signature(_chain).parameters)
  del shared['parts']
  signature = inspect.Signature(
    list({**own, **shared}.values()), return_annotation=Optimizer
  )

  @functools.wraps(parts)
  def make(**settings: Any) -> Optimizer:
    signature.bind(**settings)  # refuses unknown and missing names
    mine = {k: v for k, v in settings.items() if k in own}
    if mine.get('moment_dtype', 'float32') not in _MOMENTS:
      raise ValueError(
        f'optim.moment_dtype={mine["moment_dtype"]!r}: use '
        f'{" or ".join(_MOMENTS)}'
      )
    for key in ('b1', 'b2', 'momentum'):
      if key in mine:  # at 1 an average would never move
        schedules.check(key, mine[key], 0, 1 - 1e-9)
    rest = {k: v for k, v in settings.items() if k in shared}
    return _chain(parts(**mine), **rest)

  make.__dict__['__signature__'] = signature
  return make


@_optimizer
def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  moment_dtype: str = 'float32',
) -> _Parts:
  """Adam with decoupled weight decay.

  `moment_dtype='bfloat16'` keeps the first moment in half the memory.

  Of optax's pieces: fusing them by hand saved 16 % of an update on CPU (5.2M
  parameters, 9.6 ms against 8.1, paired), which is not worth a second Adam.

  Reference: Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2.
  """
  return _Parts(optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype))


@_optimizer
def sgd(*, momentum: float = 0.9, nesterov: bool = False) -> _Parts:
  """Stochastic gradient descent; `momentum=0` is the plain kind."""
  if not momentum:
    return _Parts(optax.identity())
  return _Parts(optax.trace(momentum, nesterov))


@_optimizer
def lion(
  *, b1: float = 0.9, b2: float = 0.99, moment_dtype: str = 'float32'
) -> _Parts:
  """Lion: the sign of an interpolated momentum.

  `moment_dtype` is that of `adamw`.

  Against AdamW use a `peak` 3-10x lower and a `decay` as much higher.

  Reference: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
  """
  return _Parts(optax.scale_by_lion(b1, b2, mu_dtype=moment_dtype))


def _matrices(matrices: masks.Matrices | None) -> masks.Matrices:
  if matrices is None:
    raise ValueError('optim.matrices: give those of the model, Model.matrices')
  return tuple((regex, summed, out) for regex, summed, out in matrices)


@_optimizer
def adafactor(
  *,
  power: float = 0.8,
  size: int = 128,
  eps: float = 1e-30,
  threshold: float = 1.0,
  parameter_scale: bool = True,
  momentum: float = 0.0,
  matrices: masks.Matrices | None = None,
) -> _Parts:
  """Adafactor: second moments of matrices as rows and columns.

  `peak` is relative to the RMS of each block of parameters (about 1e-2) unless
  `parameter_scale` is off. `momentum` averages the scaled updates; 0 does not,
  which saves the memory. `matrices` are the same as in `muon`. The rest is
  described at `factored.scale_by_blocks`.

  Reference: Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4. As
    everywhere here, `decay` follows the learning rate; in optax's it does not.
  """
  matrices = _matrices(matrices)
  scale = factored.scale_by_blocks(
    power=power,
    size=size,
    eps=eps,
    threshold=threshold,
    parameter_scale=parameter_scale,
    matrices=matrices,
  )
  if momentum:
    scale = optax.chain(scale, optax.ema(momentum, debias=False))
  return _Parts(scale)


@_optimizer
def muon(
  *,
  peak: float,
  adam_peak: float,
  momentum: float = 0.95,
  nesterov: bool = True,
  update_rms: float = 0.2,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  moment_dtype: str = 'float32',
  matrices: masks.Matrices | None = None,
) -> _Parts:
  """Muon on the blocks' matrices, AdamW on everything else.

  Built from `optax.contrib.scale_by_muon`: the ready `optax.contrib.muon` goes
  by rank, takes embeddings for matrices and stacked kernels for none, and runs
  Adam with Nesterov momentum and a decay without a mask.

  Args:
    peak: highest learning rate of the matrices; the returned schedule's.
    adam_peak: highest learning rate of the rest, on the same schedule.
    momentum: of the matrices.
    nesterov: of the matrices.
    update_rms: scales a matrix by `update_rms * sqrt(max(rows, columns))`, so
      that 0.2 matches the RMS of AdamW's updates, and its learning rates and
      decay carry over. 0 scales by `sqrt(max(1, columns / rows))` instead.
    b1: AdamW's, as are b2 and eps.
    moment_dtype: see `adamw`; the momentum has it too.
    matrices: which parameters of blocks are matrices, and how; None stands for
      `Model.matrices` in a config.

  Raises:
    ValueError: when first used, if no parameter is a matrix.

  Reference: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al.
    2025, arXiv 2502.16982, section 2.2 (update RMS).
  """
  schedules.check('peak', peak, low=1e-12)
  schedules.check('adam_peak', adam_peak)
  schedules.check('update_rms', update_rms)
  matrices = _matrices(matrices)

  def dimensions(updates: types.Params) -> Any:
    def of(path, _):
      found = masks.dimensions(path, matrices)
      return contrib.MuonDimensionNumbers(*found) if found else None

    return tree.map_paths(of, updates)

  def size(path: str, update: jax.Array) -> jax.Array:
    found = masks.dimensions(path, matrices)
    assert found is not None
    rows, columns = (
      functools.reduce(lambda n, d: n * update.shape[d], dims, 1)
      for dims in found
    )
    if update_rms:
      return update * (update_rms * max(rows, columns) ** 0.5)
    return update * max(1, columns / rows) ** 0.5

  def labels(params: types.Params) -> Any:
    found = tree.map_paths(
      lambda path, _: 'muon' if masks.dimensions(path, matrices) else 'adam',
      params,
    )
    if 'muon' not in jax.tree.leaves(found):
      raise ValueError('optim.matrices: no parameter matches; add a row')
    return found

  def rest(params: types.Params) -> Any:
    return jax.tree.map(lambda label: label == 'adam', labels(params))

  orthogonal = contrib.scale_by_muon(
    _NEWTON_SCHULZ,
    len(_NEWTON_SCHULZ),
    momentum,
    mu_dtype=moment_dtype,
    nesterov=nesterov,
    weight_dimension_numbers=dimensions,
  )
  sized = optax.stateless(lambda updates, _: tree.map_paths(size, updates))
  scale = optax.partition(
    {
      'muon': optax.chain(orthogonal, sized),
      'adam': optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype),
    },
    labels,
  )
  return _Parts(scale, optax.masked(optax.scale(adam_peak / peak), rest))
