"""Attention in blocks, which never holds the scores of a whole text.

Keys stream past the queries in blocks. Each block of keys updates a running
maximum, a running sum and a running mixture of values of every query.
The backward pass computes the scores of each block again.

Letters that `types` does not have: I blocks of queries, J blocks of keys; q and
s are the positions of one such block.

References: Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv
2205.14135 (with its gradients, appendix B); Milakov and Gimelshein 2018, arXiv
1805.02867 (the running softmax).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.layers import linear, masks

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
  settings: Settings,
) -> jax.Array:
  """Mixes values by the softmax of dot products: float32 [B, K, G, L, H]."""
  return _attend(q_BKGLH, k_BKSH, v_BKSH, mask, settings)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BKGLH, k_BKSH, v_BKSH, mask, settings):
  return _forward(q_BKGLH, k_BKSH, v_BKSH, mask, settings)[0]


def _forward(q_BKGLH, k_BKSH, v_BKSH, mask, settings):
  (q_BKGLH, k_BKSH, v_BKSH), dtypes = narrow(settings, q_BKGLH, k_BKSH, v_BKSH)
  sums = absorb(
    start(q_BKGLH), q_BKGLH, k_BKSH, v_BKSH, mask, mask, 0, settings
  )
  out_BKGLH, log_z_BKGL = finish(sums)
  # The output and one number a row are all that the backward pass needs: with
  # log_z it has the final weights of any block at once, without running sums.
  residuals = q_BKGLH, k_BKSH, v_BKSH, mask, out_BKGLH, log_z_BKGL, dtypes
  return out_BKGLH, residuals


def _backward(settings, residuals, cotangent_BKGLH):
  q_BKGLH, k_BKSH, v_BKSH, mask, out_BKGLH, log_z_BKGL, dtypes = residuals
  rows = Rows(
    q_BKGLH, cotangent_BKGLH, delta(cotangent_BKGLH, out_BKGLH), log_z_BKGL
  )
  gradients = pull(rows, k_BKSH, v_BKSH, mask, mask, 0, settings)
  return *widen(gradients, dtypes), None


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


def start(q_BKGLH: jax.Array) -> Sums:
  """Makes the sums of queries that have seen no key yet."""
  shape = q_BKGLH.shape[:-1]
  return Sums(
    jnp.zeros(q_BKGLH.shape, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.full(shape, _LEAST, jnp.float32),
  )


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
  rows = _Blocks(L, settings.block)
  columns = _Blocks(k_BKSH.shape[2], settings.block)
  # Two documents that exist nowhere, so that filling sees nothing, not even
  # the filling of the other side.
  queries, keys = rows.pad(queries, -1), columns.pad(keys, -2)
  k_BKSH, v_BKSH = (columns.fill(x, 2) for x in (k_BKSH, v_BKSH))
  least_I, most_I = _bounds(_meets(queries, keys, first, rows, columns))

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
  across, columns = _Blocks(L, settings.block), _Blocks(S, settings.block)
  queries, keys = across.pad(queries, -1), columns.pad(keys, -2)
  meets_IJ = _meets(queries, keys, first, across, columns)
  least_J, most_J = _bounds(jnp.swapaxes(meets_IJ, 0, 1))
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


class _Blocks:
  """A dimension cut into equal blocks; the last of them is filled up.

  Attributes:
    length: of the dimension.
    count: how many blocks there are.
    size: positions in each.
  """

  def __init__(self, length: int, block: int):
    self.length = length
    self.count = -(-length // block)
    # Blocks as even as can be, so that little is filled up; multiples of 8
    # for vector units.
    even = -(-length // self.count)
    self.size = even if self.count == 1 else -(-even // 8) * 8

  def fill(self, x, axis, value=0):
    """Fills up the last block of an array along `axis`."""
    missing = self.count * self.size - self.length
    if not missing:
      return x
    pad = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, pad, constant_values=value)

  def pad(self, mask, segment):
    """Fills up the last block of a mask with tokens of document `segment`."""
    values = {'segments': segment, 'positions': 0, 'prefix': False}
    tokens = {
      name: x if x is None else self.fill(x, 1, values[name])
      for name, x in mask.tokens().items()
    }
    return mask.replace(**tokens)

  def tokens(self, mask, i):
    """Takes block `i` of a mask."""
    return mask.replace(
      **jax.tree.map(lambda x: self.slice(x, i, 1), mask.tokens())
    )

  def slice(self, x, i, axis):
    """Takes block `i` of an array."""
    return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

  def split(self, x, axis):
    """Stacks the blocks of an array along a new first dimension."""
    x = self.fill(x, axis)
    shape = *x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def join(self, x, axis):
    """Undoes `split`, but for the filling."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _meets(queries, keys, first, rows: _Blocks, columns: _Blocks):
  """Finds which blocks of queries may see which blocks of keys: bool [I, J].

  It compares only the least and the greatest number of each block. So a pair
  may be found in which no query sees a key, which costs time; a pair that is
  not found has none for certain, and is skipped.
  """

  def extremes(x, blocks):
    x = x.reshape(len(x), blocks.count, blocks.size)
    return x.min(-1), x.max(-1)

  def pairs(x_BI, y_BJ, compare):
    return compare(x_BI[:, :, None], y_BJ[:, None, :])

  # Two blocks can share a document only if their ranges of numbers overlap.
  low_BI, high_BI = extremes(queries.segments, rows)
  low_BJ, high_BJ = extremes(keys.segments, columns)
  meets_BIJ = pairs(low_BI, high_BJ, jnp.less_equal) & pairs(
    high_BI, low_BJ, jnp.greater_equal
  )
  if queries.causal:
    # The last query of a block sees the most keys.
    last_I = first + (jnp.arange(rows.count) + 1) * rows.size - 1
    start_J = jnp.arange(columns.count) * columns.size
    before_BIJ = pairs(last_I[None], start_J[None], jnp.greater_equal)
    if keys.prefix is not None:
      # A key of a prefix is seen from the left, too.
      before_BIJ = before_BIJ | extremes(keys.prefix, columns)[1][:, None]
    meets_BIJ = meets_BIJ & before_BIJ
  window = queries.window
  if window is not None:
    # The first query of a block reaches farthest to the left.
    query_BI = extremes(queries.positions, rows)[0]
    key_BJ = extremes(keys.positions, columns)[1]
    meets_BIJ = meets_BIJ & pairs(query_BI, key_BJ, lambda a, b: a - b < window)
  # One loop runs over all rows of the batch, so a block is needed if any row
  # needs it.
  return jnp.any(meets_BIJ, axis=0)


def _bounds(meets_IJ):
  """Finds the first block that each row of pairs meets, and one past the last.

  Both are equal in a row that meets none, so that its loop does not run.
  """
  J = meets_IJ.shape[1]
  least_I = jnp.argmax(meets_IJ, axis=1)
  most_I = J - jnp.argmax(meets_IJ[:, ::-1], axis=1)
  return least_I, jnp.where(jnp.any(meets_IJ, axis=1), most_I, least_I)
