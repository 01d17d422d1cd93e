"""Routers: which experts a token reads, and what a router measures of itself.

K is the number of experts that a token chooses here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import types
from lm.layers import checks

SCORINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'softmax': jax.nn.softmax,
  'sigmoid': jax.nn.sigmoid,
}

# Of the gradient that moves a router's bias: only its sign is used, and a norm
# of gradients must not notice it.
_NUDGE = 1e-6


class Router(NamedTuple):
  """How tokens choose experts; see `router`."""

  top_k: int
  scoring: str
  normalize: bool
  balance_weight: float
  balance_bias: bool
  z_weight: float


def router(
  *,
  top_k: int = 2,
  scoring: str = 'softmax',
  normalize: bool = True,
  balance_weight: float = 0.01,
  balance_bias: bool = False,
  z_weight: float = 0.0,
) -> Router:
  """Describes how tokens choose experts.

  Args:
    top_k: K, experts that a token chooses.
    scoring: of the router's logits: 'softmax' over all experts, or 'sigmoid' of
      each (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    normalize: the weights of a token's experts are their scores divided by the
      sum of these; with 'softmax' that is a softmax over the chosen ones
      (Mixtral, arXiv 2401.04088, section 2.1). Otherwise the scores (Switch,
      arXiv 2101.03961, section 2.1).
    balance_weight: of the loss that balances loads, see `measure`; 0 has none.
    balance_bias: balances loads by a bias on the scores that experts are chosen
      by; it learns by `optim.balance_rate`. Reference: Wang et al. 2024, arXiv
      2408.15664, algorithm 1.
    z_weight: of the mean squared log normalizer of the router's logits.
      Reference: ST-MoE, arXiv 2202.08906, equation 5.

  Raises:
    ValueError: for a setting that is unknown or out of range.
  """
  checks.check_counts(top_k=top_k)
  checks.check_choices(scoring=(scoring, SCORINGS))
  for key, value in (
    ('balance_weight', balance_weight),
    ('z_weight', z_weight),
  ):
    if not value >= 0:
      raise ValueError(f'{key}={value} must be at least 0')
  return Router(
    top_k, scoring, normalize, balance_weight, balance_bias, z_weight
  )


def choose(
  logits_BLE: jax.Array,
  scores_BLE: jax.Array,
  bias_E: jax.Array | None,
  top_k: int,
  normalize: bool,
) -> tuple[jax.Array, jax.Array]:
  """Chooses experts: int32 and float32 [B, L, K], which and how much of each.

  The bias takes part in the choice alone, not in the weights.
  """
  # Logits have the order of scores, and bits that scores have rounded off: of
  # small logits more, so that a choice seldom turns on rounding.
  preferred_BLE = logits_BLE
  if bias_E is not None:
    preferred_BLE = scores_BLE + bias_E[None, None]
  _, choices_BLK = jax.lax.top_k(jax.lax.stop_gradient(preferred_BLE), top_k)
  weights_BLK = jnp.take_along_axis(scores_BLE, choices_BLK, axis=-1)
  if normalize:
    # Sigmoids of logits below -88 are all 0.
    weights_BLK /= jnp.sum(weights_BLK, axis=-1, keepdims=True) + 1e-20
  return choices_BLK, weights_BLK


def measure(
  logits_BLE: jax.Array,
  scores_BLE: jax.Array,
  choices_BLK: jax.Array,
  live_BL: jax.Array,
  bias_E: jax.Array | None,
  balance_weight: float,
  z_weight: float,
) -> dict[str, types.Metric]:
  """Measures a router over the tokens that are not padding.

  `imbalance`: the load of the fullest expert over the mean load, minus 1. It is
  of the tokens of one call: of a microbatch, where there are several.

  `balance_loss`, with a weight or a bias: for each row T * sum(f_e P_e), where
  T tokens send a share f_e / E of their choices to expert e, and P_e is the
  mean of its scores, which are first made to sum to 1 for each token; it is 1
  when loads are even. Reference: DeepSeek-V3, arXiv 2412.19437, equations 17
  to 20, where a row is a text and f counts what would be chosen without the
  bias. Here f counts what was chosen and a row may hold several documents. In
  Switch (arXiv 2101.03961, equations 4 to 6) both are means over a batch, so
  that rows balance each other: which value it has depends on how a batch is
  cut up.

  With a bias there is a term whose value is 0 and whose gradient is the error
  of each expert's load, times a number that is the same for all: descent by its
  sign is algorithm 1 of arXiv 2408.15664. Errors add up over microbatches.

  `router_z_loss`, with a weight: the square of the logits' log normalizer.

  Both are logged and minimized as means over tokens of the sum over layers.
  """
  E, K = logits_BLE.shape[-1], choices_BLK.shape[-1]
  ids_111E = jnp.arange(E)[None, None, None]
  load_BE = jnp.sum(choices_BLK[..., None] == ids_111E, axis=(1, 2))
  load_BE = load_BE.astype(jnp.float32)
  tokens_B = jnp.sum(live_BL, axis=1).astype(jnp.float32)
  tokens = jnp.sum(tokens_B)
  load_E = jnp.sum(load_BE, axis=0)
  mean = jnp.mean(load_E)
  uneven = jnp.max(load_E) / jnp.maximum(mean, 1e-9) - 1
  aux = {
    'imbalance': types.Metric(
      jax.lax.stop_gradient(jnp.where(tokens > 0, uneven, 0) * tokens), tokens
    )
  }
  balance = jnp.zeros(())
  if balance_weight:
    share_BLE = scores_BLE / (jnp.sum(scores_BLE, -1, keepdims=True) + 1e-20)
    share_BLE = jnp.where(live_BL[..., None], share_BLE, 0)
    # T cancels in T * f * P but for one that divides; a row may be all padding.
    each_B = jnp.sum(load_BE * jnp.sum(share_BLE, axis=1), axis=1)
    balance += (
      balance_weight * E / K * jnp.sum(each_B / jnp.maximum(tokens_B, 1))
    )
  if bias_E is not None:
    error_E = jax.lax.stop_gradient(load_E - mean)
    still_E = jax.lax.stop_gradient(bias_E)
    balance += _NUDGE * jnp.sum((bias_E - still_E) * error_E)
  if balance_weight or bias_E is not None:
    aux['balance_loss'] = types.Metric(balance, tokens)
  if z_weight:
    log_z_BL = jax.nn.logsumexp(logits_BLE, axis=-1)
    square_BL = jnp.where(live_BL, jnp.square(log_z_BL), 0)
    aux['router_z_loss'] = types.Metric(z_weight * jnp.sum(square_BL), tokens)
  return aux
