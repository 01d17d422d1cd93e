"""Token cross-entropy with exact weights."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from lm import types

Head = Callable[[jax.Array], jax.Array]


def make(
  *, z_weight: float = 0.0, smoothing: float = 0.0
) -> Callable[[types.Output, types.Batch, Head | None], types.Metric]:
  """Makes the training loss of `step.train_step`; see `token_loss`."""
  if smoothing >= 1:
    raise ValueError(f'smoothing={smoothing} must be below 1')

  def score(out, batch, head):
    del head
    return token_loss(out.logits, batch, z_weight=z_weight, smoothing=smoothing)

  return score


def token_loss(
  logits: jax.Array,
  batch: types.Batch,
  *,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> types.Metric:
  """Sums the weighted cross-entropy of a batch, in nats.

  Args:
    logits: [B, L, V].
    batch: its `targets` [B, L] are scored with `weights` [B, L].
    z_weight: adds `z_weight * log(Z)^2` a token, which keeps the softmax
      normalizer near 1. Reference: PaLM, arXiv 2204.02311, section 5.
    smoothing: mass taken from the target and spread over all V classes.
      Reference: Szegedy et al. 2015, arXiv 1512.00567, section 7.
  """
  nats_BL = cross_entropy(logits, batch.targets, z_weight, smoothing)
  return types.Metric(jnp.sum(nats_BL * batch.weights), jnp.sum(batch.weights))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(
  logits_BLV: jax.Array,
  targets_BL: jax.Array,
  z_weight: float = 0.0,
  smoothing: float = 0.0,
) -> jax.Array:
  """Scores each position: float32 [B, L], in nats.

  The gradient is written by hand: softmax minus target in one pass over the
  logits, where autodiff would scatter into a zero tensor as large as they are.
  """
  return _forward(logits_BLV, targets_BL, z_weight, smoothing)[0]


def _forward(logits_BLV, targets_BL, z_weight, smoothing):
  # A sum over a vocabulary in bfloat16 keeps two digits; always float32.
  wide_BLV = logits_BLV.astype(jnp.float32)
  log_z_BL = jax.nn.logsumexp(wide_BLV, axis=-1)
  score_BL = jnp.take_along_axis(wide_BLV, targets_BL[..., None], -1)[..., 0]
  nats_BL = log_z_BL - (1 - smoothing) * score_BL
  if smoothing:
    nats_BL -= smoothing * jnp.mean(wide_BLV, axis=-1)
  if z_weight:
    nats_BL += z_weight * jnp.square(log_z_BL)
  return nats_BL, (logits_BLV, targets_BL, log_z_BL)


def _backward(z_weight, smoothing, residuals, cotangent_BL):
  logits_BLV, targets_BL, log_z_BL = residuals
  wide_BLV = logits_BLV.astype(jnp.float32)
  grad_BLV = jnp.exp(wide_BLV - log_z_BL[..., None])
  if z_weight:
    grad_BLV *= (1 + 2 * z_weight * log_z_BL)[..., None]
  hit_BLV = _one_hot(targets_BL, logits_BLV)
  grad_BLV -= jnp.where(hit_BLV, 1 - smoothing, 0)
  if smoothing:
    grad_BLV -= smoothing / logits_BLV.shape[-1]
  return (grad_BLV * cotangent_BL[..., None]).astype(logits_BLV.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _one_hot(targets_BL, logits_BLV):
  # A comparison with an iota fuses into the loop that reads the logits.
  ids_11V = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BLV.shape[-1]), 2)
  return ids_11V == targets_BL[..., None]
