"""Differential privacy: what is learnt hardly depends on any one record.

  c.privacy = {'fn': 'lm.training.privacy:gaussian', 'clip': 1.0, 'noise': 1.0,
               'delta': 1e-5}
  c.data.expected = 64  # of the batch_size rows; see lm.data.finetuning.tasks

The gradient of each record is cut to a length and noise is added to their sum.
Clipping and accounting are those of jax-privacy (the extra `privacy`).

Parameters are private, and nothing else is: neither the losses that
metrics.jsonl has of training, nor anything to whoever knows the seed, from
which draws and noise come. So give away `lm.checkpoint.restore_params` alone,
never config.json or a checkpoint. What `init_from` has seen is not counted, and
noise of floating point is open to Mironov's attack (2012), as elsewhere.

Reference: Abadi et al. 2016, arXiv 1607.00133, algorithm 1.
"""

from collections.abc import Callable
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import errors, types


class Privacy(NamedTuple):
  """How gradients are made private; see `gaussian`."""

  clip: float
  noise: float
  delta: float


def gaussian(*, clip: float, noise: float, delta: float) -> Privacy:
  """Cuts the gradient of each record, and adds Gaussian noise to their sum.

  Args:
    clip: the longest gradient of a record, of its mean loss.
    noise: standard deviation, in units of `clip`.
    delta: how likely the promise of epsilon may fail: below one by the number
      of records.

  Raises:
    ValueError: a setting is out of range, or jax-privacy is missing.
  """
  for name, value in (('clip', clip), ('noise', noise), ('delta', delta)):
    if not value > 0:
      raise ValueError(f'privacy: {name}={value} must be above 0')
  _package('clipping')
  return Privacy(clip, noise, delta)


def gradients(
  total: Callable[..., tuple[jax.Array, dict[str, types.Metric]]],
  params: types.Params,
  batch: types.Batch,
  rng: jax.Array,
  *,
  privacy: Privacy,
  expected: int,
  microbatches: int = 1,
) -> tuple[types.Params, dict[str, types.Metric]]:
  """Gives the noisy mean of cut gradients, and what was found, which is not.

  Args:
    total: `(params, row, rng) -> (loss, found)` of a batch of one row.
    params: to differentiate by.
    batch: B rows, of which those without weight count for nothing.
    rng: of dropout and of the noise.
    privacy: what to add.
    expected: rows that a batch has on average, which the sum is divided by: B
      itself would tell how many there are.
    microbatches: parts of the batch whose rows are computed at a time.
  """
  clipped = _package('clipping').clipped_grad(
    total,
    has_aux=True,
    l2_clip_norm=privacy.clip,
    normalize_by=float(expected),
    batch_argnums=1,
    microbatch_size=len(batch.tokens) // microbatches,
    prng_argnum=2,
  )
  dropout, noise = jax.random.split(rng)
  live_B = jnp.sum(batch.weights, axis=1) > 0
  grads, per_row = clipped(params, batch, dropout, is_padding_example=~live_B)
  found = {name: _sum(rows, live_B) for name, rows in per_row.aux.items()}
  leaves, form = jax.tree.flatten(grads)
  deviation = privacy.noise * privacy.clip / expected
  noisy = [
    x + deviation * jax.random.normal(key, x.shape, x.dtype)
    for x, key in zip(leaves, jax.random.split(noise, len(leaves)), strict=True)
  ]
  return jax.tree.unflatten(form, noisy), found


def _sum(rows: types.Metric, live_B: jax.Array) -> types.Metric:
  # A row without a number has no gradient; a nan here would drop the update.
  total_B, weight_B = (jnp.reshape(x, live_B.shape) for x in rows)
  counts_B = live_B & jnp.isfinite(total_B)
  return types.Metric(
    *(jnp.sum(jnp.where(counts_B, x, 0)) for x in (total_B, weight_B))
  )


def epsilon(
  privacy: Privacy, steps: int, *, records: int, expected: int, rows: int
) -> float:
  """Says what is promised after some steps: (epsilon, `privacy.delta`)-DP.

  Of adding or leaving out one record, by the privacy loss distribution.

  Args:
    privacy: of each step.
    steps: so many.
    records: in all; each is drawn by itself, `expected` of them on average.
    expected, rows: as of `lm.data.finetuning.tasks`; of more than `rows` the rest is left.

  Reference: Doroshenko et al. 2022, arXiv 2207.04380, in dp_accounting.
  """
  accounting = _package('accounting.analysis')
  accountants = _package('accounting.accountants')
  return accounting.DpsgdTrainingAccountant(
    accountants.PldAccountantConfig()
  ).compute_epsilon(
    steps,
    accounting.DpParams(
      noise_multipliers=privacy.noise,
      num_samples=records,
      delta=privacy.delta,
      batch_size=expected,
      truncated_batch_size=rows,
    ),
  )


def _package(name: str) -> Any:
  try:
    return importlib.import_module(f'jax_privacy.{name}')
  except ImportError as error:
    raise ValueError(
      f'privacy: needs jax-privacy: {errors.install("privacy")}'
    ) from error
