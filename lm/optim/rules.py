"""Rules: how an optimizer scales gradients; see `optimizers.make`.

A rule is added as a function that returns a `Rule`; a config names it by
`optim.rule.fn`.
"""

from collections.abc import Callable
from functools import partial
import math
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from lm import tree, types
from lm.optim import factored, masks, schedules

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


def _same(peak: float) -> optax.GradientTransformation:
  del peak
  return optax.identity()


class Rule(NamedTuple):
  """How an optimizer scales gradients and learning rates.

  Attributes:
    scale: from gradients to updates of unit size, pointing uphill.
    rates: from the highest learning rate to the factors that learning rates
      are multiplied by, after weight decay.
    update_size: from a path to how large its updates are, which decides how
      rates follow the width, see `lm.optim.transfer`: an 'element' has size 1;
      an update is as large as its 'gradient', or 'relative' to its parameter;
      or it is orthogonal, with a 'spectral' norm of sqrt(max(1, fan-out /
      fan-in)) or the elements 'matched' to size 1. None does not say.
  """

  scale: optax.GradientTransformation
  rates: Callable[[float], optax.GradientTransformation] = _same
  update_size: Callable[[str], str] | None = None


def _all(size: str) -> Callable[[str], str]:
  return lambda path: size


# The largest float32 below 1. What lies above it is rounded to 1, where an
# average never moves, and Adam divides its first one by 0.
_BELOW_1 = 1 - 2**-24


def _check(
  moment_dtype: str = 'float32',
  *,
  eps: float | None = None,
  **averages: float,
) -> None:
  """Checks what rules have in common.

  Args:
    moment_dtype: of first moments.
    eps: what is added to a divisor: where a gradient is 0, nothing else is.
    **averages: the weight of the old value in an average, by key.

  Raises:
    ValueError: a setting is out of range.
  """
  if moment_dtype not in _MOMENTS:
    raise ValueError(
      f'optim.rule.moment_dtype={moment_dtype!r}: use {" or ".join(_MOMENTS)}'
    )
  for key, value in averages.items():
    # In words: six digits of the bound would be 1.
    if not 0 <= value <= _BELOW_1:
      raise ValueError(
        f'optim.rule.{key}={value}: give a number from 0 to below 1'
      )
  if eps is not None:
    schedules.check('rule.eps', eps, low=schedules.SMALLEST)


def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  moment_dtype: str = 'float32',
) -> Rule:
  """Adam with decoupled weight decay.

  `moment_dtype='bfloat16'` keeps the first moment in half the memory.

  Of optax's pieces: fusing them by hand saved 16 % of an update on CPU (5.2M
  parameters, 9.6 ms against 8.1, paired), which is not worth a second Adam.

  Reference: Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2.
  """
  _check(moment_dtype, eps=eps, b1=b1, b2=b2)
  scale = optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)
  return Rule(scale, update_size=_all('element'))


def sgd(*, momentum: float = 0.9, nesterov: bool = False) -> Rule:
  """Stochastic gradient descent; `momentum=0` is the plain kind."""
  _check(momentum=momentum)
  if not momentum:
    return Rule(optax.identity(), update_size=_all('gradient'))
  return Rule(optax.trace(momentum, nesterov), update_size=_all('gradient'))


def lion(
  *, b1: float = 0.9, b2: float = 0.99, moment_dtype: str = 'float32'
) -> Rule:
  """Lion: the sign of an interpolated momentum.

  `moment_dtype` is that of `adamw`.

  Against AdamW use a `peak` 3-10x lower and a `decay` as much higher.

  Reference: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
  """
  _check(moment_dtype, b1=b1, b2=b2)
  scale = optax.scale_by_lion(b1, b2, mu_dtype=moment_dtype)
  return Rule(scale, update_size=_all('element'))


def _matrices(matrices: masks.Matrices | None) -> masks.Matrices:
  if matrices is None:
    raise ValueError(
      'optim.rule.matrices: give those of the model, Model.matrices'
    )
  return tuple((regex, summed, out) for regex, summed, out in matrices)


def adafactor(
  *,
  power: float = 0.8,
  size: int = 128,
  eps: float = 1e-30,
  threshold: float = 1.0,
  parameter_scale: bool = True,
  momentum: float = 0.0,
  matrices: masks.Matrices | None = None,
) -> Rule:
  """Adafactor: second moments of matrices as rows and columns.

  `peak` is relative to the RMS of each block of parameters (about 1e-2) unless
  `parameter_scale` is off. `momentum` averages the scaled updates; 0 does not,
  which saves the memory. `matrices` are the same as in `muon`. The rest is
  described at `factored.scale_by_blocks`.

  Reference: Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4. As
    everywhere here, `decay` follows the learning rate; in optax's it does not.
  """
  _check(eps=eps, momentum=momentum)
  # Below 0 the weight of the old moments would be negative, and so would they.
  schedules.check('rule.power', power, 0, 1)
  schedules.check('rule.size', size, 1)
  schedules.check('rule.threshold', threshold, low=schedules.SMALLEST)
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
  return Rule(
    scale, update_size=_all('relative' if parameter_scale else 'element')
  )


def muon(
  *,
  adam_peak: float,
  momentum: float = 0.95,
  nesterov: bool = True,
  update_rms: float = 0.2,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  moment_dtype: str = 'float32',
  matrices: masks.Matrices | None = None,
) -> Rule:
  """Muon on the blocks' matrices, AdamW on everything else.

  Built from `optax.contrib.scale_by_muon`: the ready `optax.contrib.muon` goes
  by rank, takes embeddings for matrices and stacked kernels for none, and runs
  Adam with Nesterov momentum and a decay without a mask.

  Args:
    adam_peak: highest learning rate of the rest, where the optimizer's `peak`
      is that of the matrices; both follow the same schedule.
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
  _check(moment_dtype, eps=eps, b1=b1, b2=b2, momentum=momentum)
  schedules.check('rule.adam_peak', adam_peak)
  schedules.check('rule.update_rms', update_rms)
  matrices = _matrices(matrices)

  def dimensions(updates: types.Params) -> Any:
    def of(path, _):
      found = masks.dimensions(path, matrices)
      return contrib.MuonDimensionNumbers(*found) if found else None

    return tree.map_paths(of, updates)

  def size(path: str, update: jax.Array) -> jax.Array:
    found = masks.dimensions(path, matrices)
    assert found is not None
    rows, columns = (math.prod(update.shape[d] for d in dims) for dims in found)
    if update_rms:
      return update * (update_rms * max(rows, columns) ** 0.5)
    return update * max(1, columns / rows) ** 0.5

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
    partial(_labels, matrices),
  )

  def update_size(path: str) -> str:
    if not masks.dimensions(path, matrices):
      return 'element'
    return 'matched' if update_rms else 'spectral'

  def rates(peak: float) -> optax.GradientTransformation:
    return optax.masked(
      optax.scale(adam_peak / peak),
      lambda params: jax.tree.map(
        lambda x: x == 'adam', _labels(matrices, params)
      ),
    )

  return Rule(scale, rates, update_size)


def _labels(matrices: masks.Matrices, params: types.Params) -> Any:
  """Labels each parameter 'muon' if it is a matrix, and otherwise 'adam'."""
  found = tree.map_paths(
    lambda path, _: 'muon' if masks.dimensions(path, matrices) else 'adam',
    params,
  )
  if 'muon' not in jax.tree.leaves(found):
    raise ValueError('optim.rule.matrices: no parameter matches; add a row')
  return found
