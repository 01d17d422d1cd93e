"""Rules: how an optimizer scales gradients; see `optimizers.make`.

A rule is added as a function that returns a `Rule`; a config names it by
`optim.rule.fn`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from lm.optim import factored, masks, orthogonal, schedules
from lm.optim import soap as soap_lib

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
      fan-in)), the elements 'matched' to size 1, or on a sphere, where its
      norm is relative to its parameter's, 'angular'. None does not say.
    factor: from a path to what its updates are multiplied by before weight
      decay is added, see `lm.optim.transfer`.
    momentum: weight of the old value in its average of gradients; 0 has none.
  """

  scale: optax.GradientTransformation
  rates: Callable[[float], optax.GradientTransformation] = _same
  update_size: Callable[[str], str] | None = None
  factor: Callable[[str], float] | None = None
  momentum: float = 0.0


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
  return Rule(scale, update_size=_all('element'), momentum=b1)


def sgd(*, momentum: float = 0.9, nesterov: bool = False) -> Rule:
  """Stochastic gradient descent; `momentum=0` is the plain kind."""
  _check(momentum=momentum)
  if not momentum:
    return Rule(optax.identity(), update_size=_all('gradient'))
  scale = optax.trace(momentum, nesterov)
  return Rule(scale, update_size=_all('gradient'), momentum=momentum)


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
  return Rule(scale, update_size=_all('element'), momentum=b1)


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
  size_of = _all('relative' if parameter_scale else 'element')
  return Rule(scale, update_size=size_of, momentum=momentum)


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
  orthogonalize = optax.chain(
    orthogonal.momentum(momentum, nesterov, moment_dtype, matrices),
    orthogonal.size(update_rms, matrices),
  )
  adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)
  rule = _beside_adam(orthogonalize, adam, adam_peak, update_rms, matrices)
  return rule._replace(momentum=max(b1, momentum))


def normuon(
  *,
  adam_peak: float,
  momentum: float = 0.95,
  nesterov: bool = True,
  neuron_b2: float = 0.95,
  update_rms: float = 0.2,
  b2: float = 0.95,
  moment_dtype: str = 'float32',
  matrices: masks.Matrices | None = None,
) -> Rule:
  """NorMuon: Muon whose neurons all move by the same size, on average.

  It costs as much as `muon`, and has one more number for each neuron.

  Args:
    adam_peak: see `muon`, as for all that is not named here.
    momentum: of the matrices.
    nesterov: of the matrices.
    neuron_b2: weight of the old value in the average square of a neuron.
    update_rms: the root mean square of a matrix's update, exactly.
    b2: AdamW's; its b1 and eps are the defaults of `adamw`.
    moment_dtype: of first moments.
    matrices: which parameters are matrices.

  Raises:
    ValueError: when first used, if no parameter is a matrix.

  Reference: Li et al. 2025, arXiv 2510.05491, algorithm 1. Its momentum is not
    Nesterov's; that of the authors' code is.
  """
  _check(moment_dtype, b2=b2, momentum=momentum, neuron_b2=neuron_b2)
  schedules.check('rule.adam_peak', adam_peak)
  schedules.check('rule.update_rms', update_rms)
  matrices = _matrices(matrices)
  orthogonalize = optax.chain(
    orthogonal.momentum(momentum, nesterov, moment_dtype, matrices),
    orthogonal.balance(neuron_b2, matrices),
    orthogonal.size(update_rms, matrices),
  )
  adam = optax.scale_by_adam(0.9, b2, 1e-8, mu_dtype=moment_dtype)
  return _beside_adam(orthogonalize, adam, adam_peak, update_rms, matrices)


def soap(
  *,
  b1: float = 0.95,
  b2: float = 0.95,
  eps: float = 1e-8,
  shampoo_beta: float = 0.95,
  every: int = 10,
  max_size: int = 8192,
  moment_dtype: str = 'float32',
  matrices: masks.Matrices | None = None,
) -> Rule:
  """SOAP on the blocks' matrices, Adam at the same rate on everything else.

  Its cost is described in `lm.optim.soap`: its state is three times that of
  Adam for a square matrix. The first step makes the bases of matrices, and
  does not move them.

  Args:
    b1: Adam's average of gradients.
    b2: Adam's average of their squares, in the bases for matrices.
    eps: Adam's.
    shampoo_beta: weight of the old value in the factors of the preconditioner.
    every: steps between two refreshes of the bases.
    max_size: a side of a matrix that is larger has no factor, and the identity
      for its basis. Where both are larger, Adam is left.
    moment_dtype: see `adamw`.
    matrices: which parameters are matrices, see `muon`.

  Raises:
    ValueError: when first used, if no parameter is a matrix.

  Reference: Vyas et al. 2024, arXiv 2409.11321, algorithm 3. As in `adamw`,
    `eps` is added to the root of the corrected second moment.
  """
  _check(moment_dtype, eps=eps, b1=b1, b2=b2)
  bases = _bases(matrices, shampoo_beta, every, max_size)
  scale = optax.partition(
    {
      'soap': soap_lib.scale_by_soap(b1, b2, eps, bases, moment_dtype),
      'adam': optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype),
    },
    bases.labels,
  )
  # Between that of Adam and that of Muon, by how many directions of a gradient
  # stand out: no power of the width says how large it is.
  return Rule(scale, update_size=None, momentum=b1)


def soap_muon(
  *,
  adam_peak: float,
  momentum: float = 0.95,
  shampoo_beta: float = 0.9,
  every: int = 10,
  max_size: int = 8192,
  update_rms: float = 0.2,
  b2: float = 0.95,
  matrices: masks.Matrices | None = None,
) -> Rule:
  """SOAP-Muon: Muon on momentum that SOAP has scaled.

  In SOAP's bases momentum is divided by the root of its average square, and
  then made orthogonal. It costs what `soap` and `muon` cost together. On the
  first step there are no bases, so that it is Muon's.

  Args:
    adam_peak: see `muon`, as for all that is not named here.
    momentum: of the matrices, Nesterov's.
    shampoo_beta: weight of the old value in the factors of the preconditioner,
      and in the average squares of momentum.
    every: steps between two refreshes of the bases.
    max_size: see `soap`.
    update_rms: of the matrices.
    b2: AdamW's; its b1 and eps are the defaults of `adamw`.
    matrices: which parameters are matrices.

  Raises:
    ValueError: when first used, if no parameter is a matrix.

  Reference: Vyas 2025, nikhilvyas.github.io/SOAP_Muon.pdf, as in record 44 of
    the optimization track of github.com/KellerJordan/modded-nanogpt, which
    refreshes its bases every step and has a floor and gates besides.
  """
  _check(b2=b2, momentum=momentum)
  schedules.check('rule.adam_peak', adam_peak)
  schedules.check('rule.update_rms', update_rms)
  bases = _bases(matrices, shampoo_beta, every, max_size)
  orthogonalize = optax.chain(
    soap_lib.orthogonal_momentum(momentum, bases),
    orthogonal.size(update_rms, bases.matrices),
  )
  adam = optax.scale_by_adam(0.9, b2, 1e-8)
  return _beside_adam(
    orthogonalize, adam, adam_peak, update_rms, bases.matrices
  )


def _bases(
  matrices: masks.Matrices | None, beta: float, every: int, max_size: int
) -> soap_lib.Bases:
  """Checks settings of SOAP's bases."""
  _check(shampoo_beta=beta)
  schedules.check('rule.every', every, 1)
  schedules.check('rule.max_size', max_size)
  return soap_lib.Bases(_matrices(matrices), beta, int(every), max_size)


def _beside_adam(
  orthogonalize: optax.GradientTransformation,
  adam: optax.GradientTransformation,
  adam_peak: float,
  update_rms: float,
  matrices: masks.Matrices,
) -> Rule:
  """Makes a rule of orthogonal updates for matrices, and Adam for the rest."""
  labels = partial(orthogonal.labels, matrices)
  scale = optax.partition({'muon': orthogonalize, 'adam': adam}, labels)

  def update_size(path: str) -> str:
    if not masks.dimensions(path, matrices):
      return 'element'
    return 'matched' if update_rms else 'spectral'

  def rates(peak: float) -> optax.GradientTransformation:
    # Their ratio is a number of the program, too.
    most = min(1.0, peak) * schedules.LARGEST
    schedules.check('rule.adam_peak', adam_peak, high=most)
    return optax.masked(
      optax.scale(adam_peak / peak),
      lambda params: jax.tree.map(lambda x: x == 'adam', labels(params)),
    )

  return Rule(scale, rates, update_size, momentum=0.9)
