"""Differential privacy: parameters hardly depend on any single record.

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
  """How gradients are made private.

  Attributes:
    clip: longest gradient of a record.
    noise: standard deviation, in units of `clip`.
    delta: how likely the promise of epsilon may fail.
    expected: records that a batch has on average; None as long as the data is
      not known.
  """

  clip: float
  noise: float
  delta: float
  expected: int | None = None


def gaussian(*, clip: float, noise: float, delta: float) -> Privacy:
  """Clips the gradient of each record, and adds Gaussian noise to their sum.

  Args:
    clip: norm that the gradient of a record's mean loss is cut to.
    noise: standard deviation of the noise, in units of `clip`.
    delta: probability that the promise of epsilon fails; take less than one
      divided by the number of records.

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
  private: Privacy,
  microbatches: int = 1,
) -> tuple[types.Params, dict[str, types.Metric]]:
  """Computes the noisy mean of clipped gradients, and metrics without noise.

  The sum is divided by the expected number of rows: the actual number would
  tell how many records were drawn.

  Args:
    total: `(params, row, rng) -> (loss, metrics)` of a batch of one row.
    params: to differentiate by.
    batch: B rows, of which those without weight count for nothing.
    rng: of dropout and of the noise.
    private: clip, noise and expected rows.
    microbatches: parts of the batch whose rows are computed at a time.
  """
  assert private.expected is not None
  clipped = _package('clipping').clipped_grad(
    total,
    has_aux=True,
    l2_clip_norm=private.clip,
    normalize_by=float(private.expected),
    batch_argnums=1,
    microbatch_size=len(batch.tokens) // microbatches,
    prng_argnum=2,
  )
  dropout, noise = jax.random.split(rng)
  live_B = jnp.sum(batch.weights, axis=1) > 0
  grads, per_row = clipped(params, batch, dropout, is_padding_example=~live_B)
  metrics = {name: _sum(rows, live_B) for name, rows in per_row.aux.items()}
  leaves, form = jax.tree.flatten(grads)
  deviation = private.noise * private.clip / private.expected
  noisy = [
    x + deviation * jax.random.normal(key, x.shape, x.dtype)
    for x, key in zip(leaves, jax.random.split(noise, len(leaves)), strict=True)
  ]
  return jax.tree.unflatten(form, noisy), metrics


def _sum(rows: types.Metric, live_B: jax.Array) -> types.Metric:
  # A row without a number has no gradient; a nan here would drop the update.
  total_B, weight_B = (jnp.reshape(x, live_B.shape) for x in rows)
  counts_B = live_B & jnp.isfinite(total_B)
  return types.Metric(
    *(jnp.sum(jnp.where(counts_B, x, 0)) for x in (total_B, weight_B))
  )


def epsilon(private: Privacy, steps: int, *, records: int, rows: int) -> float:
  """Computes what is promised after some steps: (epsilon, delta)-DP.

  It holds for adding or leaving out one record, and is computed from the
  privacy loss distribution.

  Args:
    private: of each step, with `expected`.
    steps: how many were taken.
    records: of the data set; each is drawn by itself.
    rows: of a batch; records that are drawn beyond them are left out.

  Reference: Doroshenko et al. 2022, arXiv 2207.04380, in dp_accounting.
  """
  accounting = _package('accounting.analysis')
  accountants = _package('accounting.accountants')
  return accounting.DpsgdTrainingAccountant(
    accountants.PldAccountantConfig()
  ).compute_epsilon(
    steps,
    accounting.DpParams(
      noise_multipliers=private.noise,
      num_samples=records,
      delta=private.delta,
      batch_size=private.expected,
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
