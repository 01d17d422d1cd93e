"""Attention in blocks, which never holds the scores of a whole text.

Keys stream past the queries in blocks. Each block of keys updates a running
maximum, a running sum and a running mixture of values of every query.
The backward pass computes the scores of each block again.

Letters that `types` does not have: q and s are the positions of one block of
queries and one of keys.

References: Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv
2205.14135 (with its gradients, appendix B); Milakov and Gimelshein 2018, arXiv
1805.02867 (the running softmax).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.layers import block_pairs, linear, masks

# Where running maxima start: above the score of a masked key, so that exp()
# gives such a key weight 0 in a row that has seen nothing else, and below every
# real score.
_LEAST = masks.MASKED / 2


class Settings(NamedTuple):
  """The settings that all blocks share.

  Attributes:
    softcap: bounds scores by `softcap * tanh(score / softcap)`; None is off.
    compute_dtype: type that the factors of every product are rounded to.
    block: the most positions in a block, of queries and of keys.
  """

  softcap: float | None
  compute_dtype: str
  block: int


class Sums(NamedTuple):
  """The running softmax of queries over the keys seen so far, in float32.

  Attributes:
    values: [B, K, G, L, H], the sum of values weighted by exp(score - highest).
    weight: [B, K, G, L], the sum of those weights.
    highest: [B, K, G, L], the largest score.
  """

  values: jax.Array
  weight: jax.Array
  highest: jax.Array


class Rows(NamedTuple):
  """Everything that the backward pass knows of each query.

  Attributes:
    q: [B, K, G, L, H], in the compute dtype.
    cotangent: [B, K, G, L, H], gradient with respect to the mixed values.
    delta: [B, K, G, L], see the function `delta`.
    log_z: [B, K, G, L], log of the sum of exp(scores), from `finish` after all
      keys have been seen.
  """

  q: jax.Array
  cotangent: jax.Array
  delta: jax.Array
  log_z: jax.Array


def attend(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  sink_KG: jax.Array | None = None,
  *,
  settings: Settings,
) -> jax.Array:
  """Mixes values by the softmax of dot products: float32 [B, K, G, L, H].

  Args:
    q_BKGLH, k_BKSH, v_BKSH: queries, keys and values of one text.
    mask: says which of them see each other.
    sink_KG: scores without a value, see `dot_product.attend`.
    settings: see `Settings`.
  """
  return _attend(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings):
  return _forward(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings)[0]


def _forward(q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, settings):
  (q_BKGLH, k_BKSH, v_BKSH), dtypes = narrow(settings, q_BKGLH, k_BKSH, v_BKSH)
  sums = absorb(
    start(q_BKGLH, sink_KG), q_BKGLH, k_BKSH, v_BKSH, mask, mask, 0, settings
  )
  out_BKGLH, log_z_BKGL = finish(sums)
  # The output and one number a row are all that the backward pass needs: with
  # log_z it has the final weights of any block at once, without running sums.
  kept = q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, out_BKGLH, log_z_BKGL
  return out_BKGLH, (kept, dtypes)


def _backward(settings, residuals, cotangent_BKGLH):
  kept, dtypes = residuals
  q_BKGLH, k_BKSH, v_BKSH, mask, sink_KG, out_BKGLH, log_z_BKGL = kept
  rows = Rows(
    q_BKGLH, cotangent_BKGLH, delta(cotangent_BKGLH, out_BKGLH), log_z_BKGL
  )
  gradients = pull(rows, k_BKSH, v_BKSH, mask, mask, 0, settings)
  return *widen(gradients, dtypes), None, pull_sink(sink_KG, rows)


_attend.defvjp(_forward, _backward)


def narrow(
  settings: Settings, *xs: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Rounds arrays to the compute dtype.

  Returns:
    The rounded arrays, and what `widen` needs to undo that for gradients.
  """
  # Residuals of a custom_vjp must be arrays, so empty ones carry the dtypes.
  dtypes = [jnp.zeros((0,), x.dtype) for x in xs]
  return [x.astype(settings.compute_dtype) for x in xs], dtypes


def widen(
  gradients: Sequence[jax.Array], dtypes: Sequence[jax.Array]
) -> list[jax.Array]:
  """Gives each gradient the dtype that its array had before `narrow`."""
  pairs = zip(gradients, dtypes, strict=True)
  return [x.astype(dtype.dtype) for x, dtype in pairs]


def start(q_BKGLH: jax.Array, sink_KG: jax.Array | None = None) -> Sums:
  """Makes the sums of queries that have seen no key yet, but for the sinks."""
  shape = q_BKGLH.shape[:-1]
  values_BKGLH = jnp.zeros(q_BKGLH.shape, jnp.float32)
  if sink_KG is not None:
    highest_BKGL = jnp.broadcast_to(sink_KG[None, :, :, None], shape)
    weight_BKGL = jnp.ones(shape, jnp.float32)
    return Sums(values_BKGLH, weight_BKGL, highest_BKGL.astype(jnp.float32))
  return Sums(
    values_BKGLH,
    jnp.zeros(shape, jnp.float32),
    jnp.full(shape, _LEAST, jnp.float32),
  )


def pull_sink(sink_KG: jax.Array | None, rows: Rows) -> jax.Array | None:
  """Returns the gradient of the sinks: their values are 0."""
  if sink_KG is None:
    return None
  weight_BKGL = jnp.exp(sink_KG[None, :, :, None] - rows.log_z)
  return -jnp.sum(weight_BKGL * rows.delta, axis=(0, 3))


def finish(sums: Sums) -> tuple[jax.Array, jax.Array]:
  """Divides by the weights: the mixed values, and each row's log_z."""
  # Rows that fill up a block have seen nothing; 0 / 0 would be nan, and would
  # reach the gradients of all keys.
  weight_BKGL = jnp.where(sums.weight > 0, sums.weight, 1)
  out_BKGLH = sums.values / weight_BKGL[..., None]
  return out_BKGLH, sums.highest + jnp.log(weight_BKGL)


def delta(cotangent_BKGLH: jax.Array, out_BKGLH: jax.Array) -> jax.Array:
  """Returns out . d out of each row: [B, K, G, L].

  It equals the sum over keys of weight * d weight, which the gradient of a
  softmax subtracts, without a second pass over the keys (Dao et al. 2022,
  appendix B.2).
  """
  return jnp.sum(cotangent_BKGLH * out_BKGLH, axis=-1)


def absorb(
  sums: Sums,
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  queries: masks.AttentionMask,
  keys: masks.AttentionMask,
  first: jax.Array | int,
  settings: Settings,
) -> Sums:
  """Updates the running softmax of queries by further keys.

  Args:
    sums: the softmax over the keys that came before.
    q_BKGLH, k_BKSH, v_BKSH: queries, keys and values, in the compute dtype.
    queries, keys: the mask's description of the queries and of the keys.
    first: slot of the first query among the keys; it may be negative.
    settings: see `Settings`.
  """
  L = q_BKGLH.shape[3]
  rows = block_pairs.Blocks(L, settings.block)
  columns = block_pairs.Blocks(k_BKSH.shape[2], settings.block)
  # Two documents that exist nowhere, so that filling sees nothing, not even
  # the filling of the other side.
  queries, keys = rows.pad(queries, -1), columns.pad(keys, -2)
  k_BKSH, v_BKSH = (columns.fill(x, 2) for x in (k_BKSH, v_BKSH))
  least_I, most_I = block_pairs.bounds(
    block_pairs.meets(queries, keys, first, rows, columns)
  )

  def row(_, xs):
    i, least, most, q_BKGqH, sums = xs
    tokens = rows.tokens(queries, i)

    def see(j, sums):
      k_BKsH, v_BKsH = (columns.slice(x, j, 2) for x in (k_BKSH, v_BKSH))
      mask_B1qs = tokens.materialize(
        columns.tokens(keys, j), first + i * rows.size - j * columns.size
      )
      return _absorb_block(sums, q_BKGqH, k_BKsH, v_BKsH, mask_B1qs, settings)

    # Blocks outside of least..most are masked throughout: causal attention
    # skips half of all blocks, and packed documents skip more.
    return None, jax.lax.fori_loop(least, most, see, sums)

  q_IBKGqH, sums_I = jax.tree.map(lambda x: rows.split(x, 3), (q_BKGLH, sums))
  xs = jnp.arange(rows.count), least_I, most_I, q_IBKGqH, sums_I
  _, sums_I = jax.lax.scan(row, None, xs)
  return jax.tree.map(lambda x: rows.join(x, 3)[:, :, :, :L], sums_I)


def _absorb_block(sums, q_BKGqH, k_BKsH, v_BKsH, mask_B1qs, settings) -> Sums:
  """Updates the running softmax of a block of queries by a block of keys."""
  scores_BKGqs = jnp.where(
    mask_B1qs[:, :, None], _scores(q_BKGqH, k_BKsH, settings), masks.MASKED
  )
  highest_BKGq = jnp.maximum(sums.highest, jnp.max(scores_BKGqs, axis=-1))
  # The sums so far are relative to the old maximum: this makes them relative
  # to the new one. Without a maximum exp() would overflow at scores above 88.
  shrunk_BKGq = jnp.exp(sums.highest - highest_BKGq)
  weights_BKGqs = jnp.exp(scores_BKGqs - highest_BKGq[..., None])
  # The values of this block, mixed by weights that are not yet normalized.
  mixed_BKGqH = linear.multiply(
    'BKGqs,BKsH->BKGqH',
    weights_BKGqs.astype(settings.compute_dtype),
    v_BKsH,
    'float32',
  )
  return Sums(
    sums.values * shrunk_BKGq[..., None] + mixed_BKGqH,
    sums.weight * shrunk_BKGq + jnp.sum(weights_BKGqs, axis=-1),
    highest_BKGq,
  )


def pull(
  rows: Rows,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  queries: masks.AttentionMask,
  keys: masks.AttentionMask,
  first: jax.Array | int,
  settings: Settings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what some keys add to the gradients of q, k and v, in float32.

  Args:
    rows: the queries and what is known of them.
    k_BKSH, v_BKSH: keys and values, in the compute dtype.
    queries, keys, first, settings: the same as in `absorb`.
  """
  L, S = rows.q.shape[3], k_BKSH.shape[2]
  across, columns = (
    block_pairs.Blocks(L, settings.block),
    block_pairs.Blocks(S, settings.block),
  )
  queries, keys = across.pad(queries, -1), columns.pad(keys, -2)
  meets_IJ = block_pairs.meets(queries, keys, first, across, columns)
  least_J, most_J = block_pairs.bounds(jnp.swapaxes(meets_IJ, 0, 1))
  rows = rows._replace(cotangent=rows.cotangent.astype(settings.compute_dtype))
  rows = jax.tree.map(lambda x: across.fill(x, 3), rows)

  # Keys are the outer loop here and queries the inner one, so that the sums dk
  # and dv of a block stay small; only dq is updated in place as a whole.
  def column(dq_BKGLH, xs):
    j, least, most, k_BKsH, v_BKsH = xs
    tokens = columns.tokens(keys, j)

    def see(i, sums):
      dq_BKGLH, dk_BKsH, dv_BKsH = sums
      block = jax.tree.map(lambda x: across.slice(x, i, 3), rows)
      mask_B1qs = across.tokens(queries, i).materialize(
        tokens, first + i * across.size - j * columns.size
      )
      dq_BKGqH, dk, dv = _pull_block(block, k_BKsH, v_BKsH, mask_B1qs, settings)
      dq_BKGLH = jax.lax.dynamic_update_slice_in_dim(
        dq_BKGLH,
        across.slice(dq_BKGLH, i, 3) + dq_BKGqH,
        i * across.size,
        3,
      )
      return dq_BKGLH, dk_BKsH + dk, dv_BKsH + dv

    zeros = jnp.zeros(k_BKsH.shape, jnp.float32)
    dq_BKGLH, *dkv = jax.lax.fori_loop(
      least, most, see, (dq_BKGLH, zeros, zeros)
    )
    return dq_BKGLH, dkv

  dq_BKGLH = jnp.zeros(rows.q.shape, jnp.float32)
  split = (columns.split(x, 2) for x in (k_BKSH, v_BKSH))
  dq_BKGLH, dkv_J = jax.lax.scan(
    column, dq_BKGLH, (jnp.arange(columns.count), least_J, most_J, *split)
  )
  dk_BKSH, dv_BKSH = (columns.join(x, 2)[:, :, :S] for x in dkv_J)
  return dq_BKGLH[:, :, :, :L], dk_BKSH, dv_BKSH


def _pull_block(rows: Rows, k_BKsH, v_BKsH, mask_B1qs, settings):
  """Returns what a block of queries and one of keys add to dq, dk and dv.

  Reference: Dao et al. 2022, algorithm 4.
  """
  q_BKGqH, cotangent_BKGqH, delta_BKGq, log_z_BKGq = rows
  scores_BKGqs = _scores(q_BKGqH, k_BKsH, settings)
  # exp(score - log_z) is the weight that the forward pass ended with.
  weights_BKGqs = jnp.exp(
    jnp.where(mask_B1qs[:, :, None], scores_BKGqs, masks.MASKED)
    - log_z_BKGq[..., None]
  )
  # The gradient of each weight, which is what its value is worth.
  dweights_BKGqs = linear.multiply(
    'BKGqH,BKsH->BKGqs', cotangent_BKGqH, v_BKsH, 'float32'
  )
  # Through the softmax. Masked scores need no care: their weight is 0.
  ds_BKGqs = weights_BKGqs * (dweights_BKGqs - delta_BKGq[..., None])
  if settings.softcap is not None:
    # d tanh(x) = 1 - tanh(x)^2, and scores / softcap is that tanh.
    ds_BKGqs *= 1 - jnp.square(scores_BKGqs / settings.softcap)
  ds_BKGqs = ds_BKGqs.astype(settings.compute_dtype)
  dq_BKGqH = linear.multiply('BKGqs,BKsH->BKGqH', ds_BKGqs, k_BKsH, 'float32')
  # G is summed over in these two: all query heads of a group share their key.
  dk_BKsH = linear.multiply('BKGqs,BKGqH->BKsH', ds_BKGqs, q_BKGqH, 'float32')
  dv_BKsH = linear.multiply(
    'BKGqs,BKGqH->BKsH',
    weights_BKGqs.astype(settings.compute_dtype),
    cotangent_BKGqH,
    'float32',
  )
  return dq_BKGqH, dk_BKsH, dv_BKsH


def capped(scores: jax.Array, softcap: float | None) -> jax.Array:
  """Bounds scores smoothly; None leaves them as they are."""
  return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _scores(q_BKGqH, k_BKsH, settings):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  scores_BKGqs = linear.multiply(
    'BKGqH,BKsH->BKGqs', q_BKGqH, k_BKsH, 'float32'
  )
  return capped(scores_BKGqs, settings.softcap)
