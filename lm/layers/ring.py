"""Attention over a text that is cut across devices: keys go round a ring.

Each device holds the queries, keys and values of its part of the text. It mixes
its own part first, then the keys and values that its neighbour hands on, and so
on until it has seen all parts. So no device ever holds a whole text, nor does
it in the backward pass.

Reference: Liu et al. 2023, arXiv 2310.01889.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lm.layers import blockwise, masks

AXIS = 'sequence'  # the mesh axis that the ring runs along


def attend(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  sink_KG: jax.Array | None = None,
  *,
  settings: blockwise.Settings,
) -> jax.Array:
  """Mixes the values of all parts, as `blockwise.attend` does: [B, K, G, L, H].

  Call it under `jax.shard_map`: all arrays are this device's part.
  """
  return _attend(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings):
  return _forward(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings)[0]


def _forward(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings):
  (q_BKGLH, *kv), dtypes = blockwise.narrow(settings, q_BKGLH, k_BKSH, v_BKSH)

  def step(turn, carry):
    sums, (k_BKSH, v_BKSH), tokens = carry
    # The running softmax does not care in which order keys arrive: so the sums
    # stay here, and each turn only adds the part that has just come.
    sums = blockwise.absorb(
      sums,
      q_BKGLH,
      k_BKSH,
      v_BKSH,
      mask,
      mask.replace(**tokens),
      _first(turn, mask),
      settings,
    )
    return sums, *_hand_on(carry[1:])

  # Keys travel with what the mask says of their tokens: the next device has
  # other documents and positions.
  carry = blockwise.start(q_BKGLH, sink_KG), kv, mask.tokens()
  sums, *_ = jax.lax.fori_loop(0, jax.lax.axis_size(AXIS), step, carry)
  out_BKGLH, log_z_BKGL = blockwise.finish(sums)
  kept = q_BKGLH, kv, mask, sink_KG, out_BKGLH, log_z_BKGL
  return out_BKGLH, (kept, dtypes)


def _backward(settings, residuals, cotangent_BKGLH):
  kept, dtypes = residuals
  q_BKGLH, kv, mask, sink_KG, out_BKGLH, log_z_BKGL = kept
  delta_BKGL = blockwise.delta(cotangent_BKGLH, out_BKGLH)
  rows = blockwise.Rows(q_BKGLH, cotangent_BKGLH, delta_BKGL, log_z_BKGL)

  def step(turn, carry):
    dq_BKGLH, dkv, (k_BKSH, v_BKSH), tokens = carry
    more_BKGLH, *more = blockwise.pull(
      rows,
      k_BKSH,
      v_BKSH,
      mask,
      mask.replace(**tokens),
      _first(turn, mask),
      settings,
    )
    dkv = jax.tree.map(jnp.add, dkv, more)
    # The gradients of keys and values travel with them and collect what every
    # device adds; after a full turn of the ring both are home again.
    return dq_BKGLH + more_BKGLH, *_hand_on((dkv, *carry[2:]))

  def zeros(x):
    # Float32, since as many parts are added up as there are devices.
    return jnp.zeros(x.shape, jnp.float32)

  carry = zeros(q_BKGLH), [zeros(x) for x in kv], kv, mask.tokens()
  dq_BKGLH, dkv, *_ = jax.lax.fori_loop(0, jax.lax.axis_size(AXIS), step, carry)
  dsink_KG = blockwise.pull_sink(sink_KG, rows)
  return *blockwise.widen((dq_BKGLH, *dkv), dtypes), None, dsink_KG


_attend.defvjp(_forward, _backward)


def _first(turn, mask):
  """Finds the slot of this device's first query among the keys of a turn.

  It is negative where the keys come from later in the text.
  """
  here = jax.lax.axis_index(AXIS)
  there = (here - turn) % jax.lax.axis_size(AXIS)
  return (here - there) * mask.segments.shape[1]


def _hand_on(tree):
  """Sends all arrays to the next device, and receives the previous one's."""
  count = jax.lax.axis_size(AXIS)
  order = [(i, (i + 1) % count) for i in range(count)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, order), tree)
