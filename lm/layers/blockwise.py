"""Attention in blocks: no array of the size of all scores.

Reference: Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv
2205.14135 (with its gradients, appendix B); Milakov and Gimelshein 2018, arXiv
1805.02867 (the running softmax).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.layers import linear, masks

# Where running maxima start: above what is masked, so that it weighs nothing
# in a row that has seen no other score, and below all scores.
_LEAST = masks.MASKED / 2


class Settings(NamedTuple):
  """What does not change from block to block.

  Attributes:
    softcap, compute_dtype: as of `attention.attend`.
    block: most positions of a block, of queries and of keys.
  """

  softcap: float | None
  compute_dtype: str
  block: int


class Sums(NamedTuple):
  """What queries have seen so far, float32.

  Attributes:
    values: [B, K, G, L, H], values weighted by exp(score - highest).
    weight: [B, K, G, L], sum of those weights.
    highest: [B, K, G, L], score.
  """

  values: jax.Array
  weight: jax.Array
  highest: jax.Array


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
  (q_BKGLH, k_BKSH, v_BKSH), kinds = narrow(settings, q_BKGLH, k_BKSH, v_BKSH)
  sums = absorb(
    start(q_BKGLH), q_BKGLH, k_BKSH, v_BKSH, mask, mask, 0, settings
  )
  out_BKGLH, log_BKGL = finish(sums)
  kept = q_BKGLH, k_BKSH, v_BKSH, mask, out_BKGLH, log_BKGL
  return out_BKGLH, (kept, kinds)


def _backward(settings, residuals, cotangent_BKGLH):
  (q_BKGLH, k_BKSH, v_BKSH, mask, out_BKGLH, log_BKGL), kinds = residuals
  gradients = pull(
    q_BKGLH,
    k_BKSH,
    v_BKSH,
    mask,
    mask,
    0,
    cotangent_BKGLH,
    mean(cotangent_BKGLH, out_BKGLH),
    log_BKGL,
    settings,
  )
  return *widen(gradients, kinds), None


_attend.defvjp(_forward, _backward)


def narrow(settings: Settings, *xs: jax.Array):
  """Rounds to the compute_dtype' type; returns also what `widen` undoes it with."""
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = [jnp.zeros((0,), x.dtype) for x in xs]
  return [x.astype(settings.compute_dtype) for x in xs], kinds


def widen(xs, kinds) -> list[jax.Array]:
  """Gives gradients the types of what they are of."""
  return [x.astype(kind.dtype) for x, kind in zip(xs, kinds, strict=True)]


def start(q_BKGLH: jax.Array) -> Sums:
  """Makes the sums of queries that have seen nothing."""
  shape = q_BKGLH.shape[:-1]
  return Sums(
    jnp.zeros(q_BKGLH.shape, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.full(shape, _LEAST, jnp.float32),
  )


def finish(sums: Sums) -> tuple[jax.Array, jax.Array]:
  """Returns the mixed values, and the logarithm of each row's exp(scores)."""
  # A row of 0 has seen nothing: padding of a block.
  weight_BKGL = jnp.where(sums.weight > 0, sums.weight, 1)
  return sums.values / weight_BKGL[..., None], sums.highest + jnp.log(
    weight_BKGL
  )


def mean(cotangent_BKGLH: jax.Array, out_BKGLH: jax.Array) -> jax.Array:
  """Returns each row's mean gain: sum(weights * gain) = out . d out."""
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
  """Lets queries see keys, and adds what they see to the sums.

  Args:
    sums: of what they have seen before.
    q_BKGLH, k_BKSH, v_BKSH: in the compute_dtype' type.
    queries, keys: what they may see of each other.
    first: slot of the first query among the keys; it may be negative.
    settings: see `Settings`.
  """
  L, rows = q_BKGLH.shape[3], _Cut(q_BKGLH.shape[3], settings.block)
  columns = _Cut(k_BKSH.shape[2], settings.block)
  queries, keys = rows.pad(queries, -1), columns.pad(keys, -2)
  k_BKSH, v_BKSH = (columns.fill(x, 2) for x in (k_BKSH, v_BKSH))
  least_Q, most_Q = _bounds(_meets(queries, keys, first, rows, columns))

  def row(_, xs):
    i, least, most, q_BKGqH, sums = xs
    places = rows.tokens(queries, i)

    def see(j, sums):
      k_BKsH, v_BKsH = (columns.slice(x, j, 2) for x in (k_BKSH, v_BKSH))
      mask_B1qs = places.materialize(
        columns.tokens(keys, j), first + i * rows.size - j * columns.size
      )
      scores_BKGqs = jnp.where(
        mask_B1qs[:, :, None], _scores(q_BKGqH, k_BKsH, settings), masks.MASKED
      )
      highest_BKGq = jnp.maximum(sums.highest, jnp.max(scores_BKGqs, axis=-1))
      shrunk_BKGq = jnp.exp(sums.highest - highest_BKGq)
      weights_BKGqs = jnp.exp(scores_BKGqs - highest_BKGq[..., None])
      return Sums(
        sums.values * shrunk_BKGq[..., None]
        + linear.multiply(
          'BKGLS,BKSH->BKGLH',
          weights_BKGqs.astype(settings.compute_dtype),
          v_BKsH,
          'float32',
        ),
        sums.weight * shrunk_BKGq + jnp.sum(weights_BKGqs, axis=-1),
        highest_BKGq,
      )

    return None, jax.lax.fori_loop(least, most, see, sums)

  q_QBKGqH, sums_Q = jax.tree.map(lambda x: rows.split(x, 3), (q_BKGLH, sums))
  xs = jnp.arange(rows.count), least_Q, most_Q, q_QBKGqH, sums_Q
  _, sums_Q = jax.lax.scan(row, None, xs)
  return jax.tree.map(lambda x: rows.join(x, 3)[:, :, :, :L], sums_Q)


def pull(
  q_BKGLH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  queries: masks.AttentionMask,
  keys: masks.AttentionMask,
  first: jax.Array | int,
  cotangent_BKGLH: jax.Array,
  mean_BKGL: jax.Array,
  log_BKGL: jax.Array,
  settings: Settings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what keys add to the gradients of q, k and v, float32.

  Args:
    q_BKGLH, k_BKSH, v_BKSH, queries, keys, first, settings: as of `absorb`.
    cotangent_BKGLH: of the mixed values.
    mean_BKGL: of `mean`.
    log_BKGL: of `finish`, when all keys had been seen.
  """
  L, S = q_BKGLH.shape[3], k_BKSH.shape[2]
  rows, columns = _Cut(L, settings.block), _Cut(S, settings.block)
  queries, keys = rows.pad(queries, -1), columns.pad(keys, -2)
  meets_QS = _meets(queries, keys, first, rows, columns)
  least_S, most_S = _bounds(jnp.swapaxes(meets_QS, 0, 1))
  over_rows = (
    q_BKGLH,
    cotangent_BKGLH.astype(settings.compute_dtype),
    mean_BKGL,
    log_BKGL,
  )
  over_rows = [rows.fill(x, 3) for x in over_rows]

  def column(dq_BKGLH, xs):
    j, least, most, k_BKsH, v_BKsH = xs
    places = columns.tokens(keys, j)

    def see(i, sums):
      dq_BKGLH, dk_BKsH, dv_BKsH = sums
      q_BKGqH, cotangent_BKGqH, mean_BKGq, log_BKGq = (
        rows.slice(x, i, 3) for x in over_rows
      )
      mask_B1qs = rows.tokens(queries, i).materialize(
        places, first + i * rows.size - j * columns.size
      )
      scores_BKGqs = _scores(q_BKGqH, k_BKsH, settings)
      weights_BKGqs = jnp.exp(
        jnp.where(mask_B1qs[:, :, None], scores_BKGqs, masks.MASKED)
        - log_BKGq[..., None]
      )
      gain_BKGqs = linear.multiply(
        'BKGLH,BKSH->BKGLS', cotangent_BKGqH, v_BKsH, 'float32'
      )
      ds_BKGqs = weights_BKGqs * (gain_BKGqs - mean_BKGq[..., None])
      if settings.softcap is not None:
        ds_BKGqs *= 1 - jnp.square(scores_BKGqs / settings.softcap)
      ds_BKGqs = ds_BKGqs.astype(settings.compute_dtype)
      dq_BKGqH = rows.slice(dq_BKGLH, i, 3) + linear.multiply(
        'BKGLS,BKSH->BKGLH', ds_BKGqs, k_BKsH, 'float32'
      )
      return (
        jax.lax.dynamic_update_slice_in_dim(
          dq_BKGLH, dq_BKGqH, i * rows.size, 3
        ),
        dk_BKsH
        + linear.multiply('BKGLS,BKGLH->BKSH', ds_BKGqs, q_BKGqH, 'float32'),
        dv_BKsH
        + linear.multiply(
          'BKGLS,BKGLH->BKSH',
          weights_BKGqs.astype(settings.compute_dtype),
          cotangent_BKGqH,
          'float32',
        ),
      )

    zeros = jnp.zeros(k_BKsH.shape, jnp.float32)
    dq_BKGLH, *dkv = jax.lax.fori_loop(
      least, most, see, (dq_BKGLH, zeros, zeros)
    )
    return dq_BKGLH, dkv

  dq_BKGLH = jnp.zeros(over_rows[0].shape, jnp.float32)
  split = (columns.split(x, 2) for x in (k_BKSH, v_BKSH))
  dq_BKGLH, dkv_S = jax.lax.scan(
    column, dq_BKGLH, (jnp.arange(columns.count), least_S, most_S, *split)
  )
  dk_BKSH, dv_BKSH = (columns.join(x, 2)[:, :, :S] for x in dkv_S)
  return dq_BKGLH[:, :, :, :L], dk_BKSH, dv_BKSH


def capped(scores: jax.Array, softcap: float | None) -> jax.Array:
  """Bounds scores; None leaves them as they are."""
  return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _scores(q_BKGLH, k_BKSH, settings):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  return capped(
    linear.multiply('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, 'float32'),
    settings.softcap,
  )


class _Cut:
  """A dimension cut into equal blocks; the last of them is filled up."""

  def __init__(self, length: int, block: int):
    self.length = length
    self.count = -(-length // block)
    # Blocks as even as can be, so that little is filled up; multiples of 8
    # for vector units.
    even = -(-length // self.count)
    self.size = even if self.count == 1 else -(-even // 8) * 8

  def fill(self, x, axis, value=0):
    missing = self.count * self.size - self.length
    if not missing:
      return x
    pad = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, pad, constant_values=value)

  def pad(self, mask, segment):
    """Fills up with tokens of a document of their own."""
    values = {'segments': segment, 'positions': 0, 'prefix': False}
    tokens = {
      name: x if x is None else self.fill(x, 1, values[name])
      for name, x in mask.tokens().items()
    }
    return mask.replace(**tokens)

  def tokens(self, mask, i):
    return mask.replace(
      **jax.tree.map(lambda x: self.slice(x, i, 1), mask.tokens())
    )

  def slice(self, x, i, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

  def split(self, x, axis):
    x = self.fill(x, axis)
    shape = *x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def join(self, x, axis):
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _meets(queries, keys, first, rows, columns):
  """Finds blocks of queries that may see a block of keys: bool [Q, S].

  From the least and the most in each block, so some are found in which none
  sees another; what is not found may be left out.
  """

  def extremes(x, cut):
    x = x.reshape(len(x), cut.count, cut.size)
    return x.min(-1), x.max(-1)

  def both(x_BQ, y_BS, compare):
    return compare(x_BQ[:, :, None], y_BS[:, None, :])

  (a_BQ, b_BQ), (c_BS, d_BS) = (
    extremes(queries.segments, rows),
    extremes(keys.segments, columns),
  )
  meets_BQS = both(a_BQ, d_BS, jnp.less_equal) & both(
    b_BQ, c_BS, jnp.greater_equal
  )
  if queries.causal:
    last_Q = first + (jnp.arange(rows.count) + 1) * rows.size - 1
    start_S = jnp.arange(columns.count) * columns.size
    before_BQS = both(last_Q[None], start_S[None], jnp.greater_equal)
    if keys.prefix is not None:
      before_BQS = before_BQS | extremes(keys.prefix, columns)[1][:, None]
    meets_BQS = meets_BQS & before_BQS
  window = queries.window()
  if window is not None:
    near_BQ = extremes(queries.positions, rows)[0]
    far_BS = extremes(keys.positions, columns)[1]
    meets_BQS = meets_BQS & both(near_BQ, far_BS, lambda a, b: a - b < window)
  return jnp.any(meets_BQS, axis=0)


def _bounds(meets_QS):
  """Finds the first block that each meets, and the one after the last."""
  S = meets_QS.shape[1]
  least_Q = jnp.argmax(meets_QS, axis=1)
  most_Q = S - jnp.argmax(meets_QS[:, ::-1], axis=1)
  return least_Q, jnp.where(jnp.any(meets_QS, axis=1), most_Q, least_Q)
