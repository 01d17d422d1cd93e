"""Attention of a text that is cut over devices: keys and values go round.

Each device holds the queries of its part, and sees one part's keys after
another, its own first. So no device ever holds a whole text, nor in the
backward pass.

Reference: Liu et al. 2023, arXiv 2310.01889.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lm.layers import blockwise, masks

AXIS = 'sequence'


def attend(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  settings: blockwise.Settings,
) -> jax.Array:
  """Mixes values as `blockwise.attend` does, of all parts: [B, K, G, L, H].

  To be called under `jax.shard_map`: all arrays are this device's part.
  """
  return _attend(q_BKGLH, k_BKSH, v_BKSH, mask, settings)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BKGLH, k_BKSH, v_BKSH, mask, settings):
  return _forward(q_BKGLH, k_BKSH, v_BKSH, mask, settings)[0]


def _forward(q_BKGLH, k_BKSH, v_BKSH, mask, settings):
  (q_BKGLH, *kv), kinds = blockwise.narrow(settings, q_BKGLH, k_BKSH, v_BKSH)

  def step(t, carry):
    sums, (k_BKSH, v_BKSH), tokens = carry
    sums = blockwise.absorb(
      sums,
      q_BKGLH,
      k_BKSH,
      v_BKSH,
      mask,
      mask.replace(**tokens),
      _first(t, mask),
      settings,
    )
    return sums, *_turn(carry[1:])

  carry = blockwise.start(q_BKGLH), kv, mask.tokens()
  sums, *_ = jax.lax.fori_loop(0, jax.lax.axis_size(AXIS), step, carry)
  out_BKGLH, log_BKGL = blockwise.finish(sums)
  return out_BKGLH, (q_BKGLH, kv, mask, out_BKGLH, log_BKGL, kinds)


def _backward(settings, residuals, cotangent_BKGLH):
  q_BKGLH, kv, mask, out_BKGLH, log_BKGL, kinds = residuals
  mean_BKGL = blockwise.mean(cotangent_BKGLH, out_BKGLH)

  def step(t, carry):
    dq_BKGLH, dkv, (k_BKSH, v_BKSH), tokens = carry
    more_BKGLH, *more = blockwise.pull(
      q_BKGLH,
      k_BKSH,
      v_BKSH,
      mask,
      mask.replace(**tokens),
      _first(t, mask),
      cotangent_BKGLH,
      mean_BKGL,
      log_BKGL,
      settings,
    )
    dkv = jax.tree.map(jnp.add, dkv, more)
    # Gradients go with what they are of; all are home after the last turn.
    return dq_BKGLH + more_BKGLH, *_turn((dkv, *carry[2:]))

  def zeros(x):
    return jnp.zeros(x.shape, jnp.float32)

  carry = zeros(q_BKGLH), [zeros(x) for x in kv], kv, mask.tokens()
  dq_BKGLH, dkv, *_ = jax.lax.fori_loop(0, jax.lax.axis_size(AXIS), step, carry)
  return *blockwise.widen((dq_BKGLH, *dkv), kinds), None


_attend.defvjp(_forward, _backward)


def _first(t, mask):
  """Finds the slot of the own first query among the keys of turn t."""
  here = jax.lax.axis_index(AXIS)
  there = (here - t) % jax.lax.axis_size(AXIS)
  return (here - there) * mask.segments.shape[1]


def _turn(tree):
  """Hands all arrays to the next device."""
  count = jax.lax.axis_size(AXIS)
  order = [(i, (i + 1) % count) for i in range(count)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, order), tree)
