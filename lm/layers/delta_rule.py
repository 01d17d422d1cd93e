"""The gated delta rule: a memory of one size, however long the text is.

A head's memory S [H, P] is a linear map from keys to values. Each token lets it
fade, and corrects what it answers to the token's key:

  S <- exp(decay) S;  S <- S + beta k (v - k S);  o = q S

Reference: Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464, section 3 (the
rule, and its chunks); Yang et al. 2024, arXiv 2406.06484, section 3 (the delta
rule in chunks, by the WY representation of what a chunk does to the memory).

Letters beside those of `types`:

  H key width        P value width         X chunks
  C place in a chunk, of what reads        J place of what was written
  I place between the two
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


def recurrent(
  q_BLNH: jax.Array,
  k_BLNH: jax.Array,
  v_BLNP: jax.Array,
  decay_BLN: jax.Array,
  beta_BLN: jax.Array,
  segments_BL: jax.Array,
  s_BNHP: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Computes the rule as it is written, one token after another.

  It takes L steps, and its gradient keeps L states: `chunked` is measured
  against it.

  Args:
    q_BLNH: queries, with whatever scale they are to have.
    k_BLNH: keys. Of length 1, so that beta = 1 replaces a value: with longer
      ones the memory can grow without bound.
    v_BLNP: values.
    decay_BLN: logarithm of what is kept of the memory, at most 0 and finite.
    beta_BLN: how much of a key's value is replaced, 0 to 1; up to 2 is stable.
    segments_BL: document of each token; 0 is padding, which leaves the memory
      as it is, and reads it. The memory is emptied between one document and
      the next.
    s_BNHP: the memory before the first token. The first document goes on with
      it: where that one is new, zeros must be given.

  Returns:
    What is read, float32 [B, L, N, P], and the memory after the last token,
    float32 [B, N, H, P].

  Reference: arXiv 2412.06464, equation 10.
  """
  decay_BLN, beta_BLN = _silenced(decay_BLN, beta_BLN, segments_BL)

  def step(s_BNHP, now):
    q_BNH, k_BNH, v_BNP, decay_BN, beta_BN, starts_B = now
    kept_BN = jnp.where(starts_B[:, None], 0, jnp.exp(decay_BN))
    s_BNHP = s_BNHP * kept_BN[..., None, None]
    known_BNP = _product('BNH,BNHP->BNP', k_BNH, s_BNHP)
    u_BNP = beta_BN[..., None] * (v_BNP - known_BNP)
    s_BNHP += _product('BNH,BNP->BNHP', k_BNH, u_BNP)
    return s_BNHP, _product('BNH,BNHP->BNP', q_BNH, s_BNHP)

  floats = q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN
  given = *(x.astype(jnp.float32) for x in floats), starts(segments_BL)
  along = tuple(jnp.moveaxis(x, 1, 0) for x in given)
  s_BNHP, o_LBNP = jax.lax.scan(step, s_BNHP.astype(jnp.float32), along)
  return jnp.moveaxis(o_LBNP, 0, 1), s_BNHP


def chunked(
  q_BLNH: jax.Array,
  k_BLNH: jax.Array,
  v_BLNP: jax.Array,
  decay_BLN: jax.Array,
  beta_BLN: jax.Array,
  segments_BL: jax.Array,
  s_BNHP: jax.Array,
  chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
  """Computes what `recurrent` does, with products of matrices.

  Only the memory goes from chunk to chunk, in L / C steps. For its gradient it
  keeps, beside its arguments, C + H P / C numbers a token and head.

  Args:
    q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL, s_BNHP: the
      same as in `recurrent`.
    chunk: C, a power of two, of speed alone; a shorter text has a shorter one,
      so that this also decodes: one token is a chunk of 1, which is the
      recurrence.

  Returns:
    The same as `recurrent`.

  Raises:
    ValueError: for a chunk that cannot be halved.

  Reference: arXiv 2412.06464, section 3.3.
  """
  if chunk < 1 or chunk & (chunk - 1):
    raise ValueError(f'chunk={chunk} must be a power of two')
  C = min(chunk, 1 << (q_BLNH.shape[1] - 1).bit_length())
  return _chunked(
    q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL, s_BNHP, C
  )


def starts(segments_BL: jax.Array) -> jax.Array:
  """Finds where the memory is emptied: bool [B, L].

  That is where a token's document is not that of the last token before it,
  behind any padding; not at a row's first token, which whoever gives the memory
  decides.
  """
  live_BL = segments_BL > 0
  places_L = jnp.arange(segments_BL.shape[1])
  last_BL = jax.lax.cummax(jnp.where(live_BL, places_L[None], -1), axis=1)
  before_BL = jnp.pad(last_BL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  document_BL = jnp.take_along_axis(
    segments_BL, jnp.maximum(before_BL, 0), axis=1
  )
  return live_BL & (before_BL >= 0) & (segments_BL != document_BL)


def _silenced(decay_BLN, beta_BLN, segments_BL):
  """Lets padding keep all of the memory, and write nothing."""
  live_BL1 = (segments_BL > 0)[..., None]
  return jnp.where(live_BL1, decay_BLN, 0), jnp.where(live_BL1, beta_BLN, 0)


# Which products could be computed with bfloat16 factors and float32 sums, by
# `linear.multiply`: those of q, k, v and u, which are as exact as what the
# projections before them give. Not so: the sums of decays, whose errors `exp`
# makes relative ones, the inverse, where errors pass from token to token, and
# those that read or write the memory, which adds them up along the whole text.
# TPUs and GPUs round factors by default, hence the explicit 'highest'.
_product = partial(jnp.einsum, precision='highest')


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _chunked(
  q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL, s_BNHP, chunk
):
  return _forward(
    q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL, s_BNHP, chunk
  )[0]


class _Chunks(NamedTuple):
  """A text in chunks, float32.

  Attributes:
    q, k: [X, B, N, C, H].
    v: [X, B, N, C, P].
    beta: [X, B, N, C, 1].
    before: [X, B, N, C, J], what is left at C of what was written at J: 0 of
      another document, and of what comes later.
    into: [X, B, N, C, 1], what is left at C of the memory at the chunk's start.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  beta: jax.Array
  before: jax.Array
  into: jax.Array


def _prepare(args, C):
  """Cuts the arguments of `chunked` into chunks: `_Chunks`."""
  q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL = args
  decay_BLN, beta_BLN = _silenced(decay_BLN, beta_BLN, segments_BL)
  starts_XB1C1 = _cut(starts(segments_BL)[..., None, None], C)
  # Counted from 0 in each chunk: document 0 is the one that goes on.
  document_XB1C1 = jnp.cumsum(starts_XB1C1, axis=3)
  return _Chunks(
    _cut(q_BLNH, C),
    _cut(k_BLNH, C),
    _cut(v_BLNP, C),
    _cut(beta_BLN[..., None], C),
    *_decays(_cut(decay_BLN[..., None], C), document_XB1C1),
  )


def _cut(x_BLNH, C):
  """Cuts a text into chunks, [X, B, N, C, H]; what is added is padding."""
  B, L, N, H = x_BLNH.shape
  X = -(-L // C)
  x_BLNH = jnp.pad(x_BLNH, ((0, 0), (0, X * C - L), (0, 0), (0, 0)))
  x_BXCNH = x_BLNH.reshape(B, X, C, N, H).astype(jnp.float32)
  return jnp.einsum('BXCNH->XBNCH', x_BXCNH)


def _join(x_XBNCH, like_BLNH):
  """Undoes `_cut`, and gives the dtype and the length of `like`."""
  X, B, N, C, H = x_XBNCH.shape
  x_BXCNH = jnp.einsum('XBNCH->BXCNH', x_XBNCH)
  x_BLNH = x_BXCNH.reshape(B, X * C, N, H)[:, : like_BLNH.shape[1]]
  return x_BLNH.astype(like_BLNH.dtype)


def _decays(decay_XBNC1, document_XB1C1):
  """Computes `before` and `into` of `_Chunks`: the paper's mask and decays."""
  C = decay_XBNC1.shape[3]
  reached_CI, passed_IJ = jnp.tri(C), jnp.tri(C, k=-1)
  # Each sum is added up by itself, of I from J's next to C. Differences of one
  # running sum would lose a weak decay behind a strong one: 1e-5 of the result.
  decay_XBN1I = jnp.swapaxes(decay_XBNC1, 3, 4)
  decay_XBNCI = decay_XBN1I * reached_CI[None, None, None]
  between_XBNCJ = _product('XBNCI,IJ->XBNCJ', decay_XBNCI, passed_IJ)
  same_XB1CJ = document_XB1C1 == jnp.swapaxes(document_XB1C1, 3, 4)
  same_XB1CJ &= reached_CI[None, None, None] > 0
  whole_XBNC1 = jnp.sum(decay_XBNCI, axis=4, keepdims=True)
  return (
    jnp.where(same_XB1CJ, jnp.exp(between_XBNCJ), 0),
    jnp.where(document_XB1C1 == 0, jnp.exp(whole_XBNC1), 0),
  )


def _inverse(a_XBNCJ):
  """Inverts I + A, where A is 0 on and above its diagonal, by halves.

  [[T, 0], [R, U]]^-1 = [[T^-1, 0], [-U^-1 R T^-1, U^-1]], where both diagonal
  halves are inverted at once. It is made of batched products alone, which every
  mesh can cut over rows and heads and every device is fast at. The series
  (I - A)(I + A^2)(I + A^4)... is made of them too, but where keys are alike its
  terms grow like binomials and cancel: an error of 1e9 in a chunk of 64.
  """
  C = a_XBNCJ.shape[3]
  if C <= 2:
    return jnp.eye(C)[None, None, None] - a_XBNCJ
  h = C // 2
  halves = a_XBNCJ[..., :h, :h], a_XBNCJ[..., h:, h:]
  first, last = jnp.split(_inverse(jnp.concatenate(halves)), 2)
  multiply = partial(jnp.matmul, precision='highest')
  low = -multiply(multiply(last, a_XBNCJ[..., h:, :h]), first)
  above = jnp.concatenate([first, jnp.zeros_like(first)], axis=4)
  below = jnp.concatenate([low, last], axis=4)
  return jnp.concatenate([above, below], axis=3)


def _forward(
  q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL, s_BNHP, chunk
):
  """Computes `chunked`, and what its gradient reads.

  What is written at C, u_C = beta_C (v_C - k_C S), depends on all u_J before:
  S holds them. That is the system (I + A) u = beta (v - into k S_0), where
  S_0 is the memory at the chunk's start: solved for all chunks at once as
  u = T beta v - (T beta into k) S_0, it leaves four products to each step.
  """
  args = q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL
  chunks = _prepare(args, chunk)
  inverse_XBNCJ = _inverse(_overlaps(chunks)[1])
  b_XBNJP = chunks.beta * chunks.v
  u_XBNCP = _product('XBNCJ,XBNJP->XBNCP', inverse_XBNCJ, b_XBNJP)
  to_start, to_end, through_XBN11 = _ends(chunks)

  def step(s_BNHP, now):
    q_BNCH, k_BNJH, u_BNCP, w_BNCH, scores_BNCJ, through_BN11 = now
    u_BNJP = u_BNCP - _product('BNCH,BNHP->BNCP', w_BNCH, s_BNHP)
    o_BNCP = _product('BNCH,BNHP->BNCP', q_BNCH, s_BNHP)
    o_BNCP += _product('BNCJ,BNJP->BNCP', scores_BNCJ, u_BNJP)
    new_BNHP = _product('BNJH,BNJP->BNHP', k_BNJH, u_BNJP)
    return through_BN11 * s_BNHP + new_BNHP, (o_BNCP, s_BNHP)

  along = (
    to_start * chunks.q,
    to_end * chunks.k,
    u_XBNCP,
    _erased(chunks, inverse_XBNCJ),
    _scores(chunks),
    through_XBN11,
  )
  last_BNHP, (o_XBNCP, s_XBNHP) = jax.lax.scan(
    step, s_BNHP.astype(jnp.float32), along
  )
  o_BLNP = _join(o_XBNCP, v_BLNP.astype(jnp.float32))
  # An empty array carries a dtype, which jax types do not travel in.
  kept = *args, jnp.zeros((0,), s_BNHP.dtype), inverse_XBNCJ, s_XBNHP
  return (o_BLNP, last_BNHP), kept


def _overlaps(chunks):
  """Computes k k^T and A, how much of u_J is subtracted from u_C."""
  k_XBNCH = k_XBNJH = chunks.k
  alike_XBNCJ = _product('XBNCH,XBNJH->XBNCJ', k_XBNCH, k_XBNJH)
  # A token reads the memory before it writes: nothing on the diagonal.
  alike_XBNCJ = jnp.tril(alike_XBNCJ, -1)
  return alike_XBNCJ, chunks.beta * chunks.before * alike_XBNCJ


def _scores(chunks):
  """Computes how much of u_J is read at C."""
  q_XBNCH, k_XBNJH = chunks.q, chunks.k
  scores_XBNCJ = _product('XBNCH,XBNJH->XBNCJ', q_XBNCH, k_XBNJH)
  return chunks.before * scores_XBNCJ


def _erased(chunks, inverse_XBNCJ):
  """Computes w: w S_0 is what u replaces of the memory S_0."""
  k_XBNJH = chunks.beta * chunks.into * chunks.k
  return _product('XBNCJ,XBNJH->XBNCH', inverse_XBNCJ, k_XBNJH)


def _ends(chunks):
  """Returns what is left of the start at C, of J at the end, of both there."""
  out_XBNJ1 = jnp.swapaxes(chunks.before[..., -1:, :], 3, 4)
  return chunks.into, out_XBNJ1, chunks.into[..., -1:, :]


def _backward(chunk, kept, cotangents):
  """Computes gradients: some of `_forward`'s products again, then each one's.

  Only the memory's goes from chunk to chunk, from the right.
  """
  *args, kind, inverse_XBNCJ, s_XBNHP = kept
  do_BLNP, ds_BNHP = cotangents
  chunks, do_XBNCP = _prepare(args, chunk), _cut(do_BLNP, chunk)
  scores_XBNCJ = _scores(chunks)
  du_XBNJP = _product('XBNCJ,XBNCP->XBNJP', scores_XBNCJ, do_XBNCP)

  def step(ds_BNHP, now):
    q_BNCH, k_BNJH, w_BNJH, do_BNCP, du_BNJP, through_BN11 = now
    du_BNJP += _product('BNJH,BNHP->BNJP', k_BNJH, ds_BNHP)
    new_BNHP = through_BN11 * ds_BNHP
    new_BNHP += _product('BNCH,BNCP->BNHP', q_BNCH, do_BNCP)
    new_BNHP -= _product('BNJH,BNJP->BNHP', w_BNJH, du_BNJP)
    return new_BNHP, (ds_BNHP, du_BNJP)

  to_start, to_end, through_XBN11 = _ends(chunks)
  along = (
    to_start * chunks.q,
    to_end * chunks.k,
    _erased(chunks, inverse_XBNCJ),
    do_XBNCP,
    du_XBNJP,
    through_XBN11,
  )
  first_BNHP, (ds_XBNHP, du_XBNJP) = jax.lax.scan(
    step, ds_BNHP, along, reverse=True
  )
  b_XBNJP = chunks.beta * _missed(chunks, s_XBNHP)
  u_XBNCP = _product('XBNCJ,XBNJP->XBNCP', inverse_XBNCJ, b_XBNJP)
  gradients = _gradients(
    chunks, inverse_XBNCJ, s_XBNHP, ds_XBNHP, u_XBNCP, du_XBNJP, do_XBNCP
  )
  return *_joined(gradients, args), None, first_BNHP.astype(kind.dtype)


def _missed(chunks, s_XBNHP):
  """Computes v - into k S_0, what the chunk's start does not know of v."""
  k_XBNCH = chunks.into * chunks.k
  return chunks.v - _product('XBNCH,XBNHP->XBNCP', k_XBNCH, s_XBNHP)


def _joined(gradients, args):
  q_BLNH, k_BLNH, v_BLNP, decay_BLN, beta_BLN, segments_BL = args
  dq_XBNCH, dk_XBNCH, dv_XBNCP, ddecay_XBNC1, dbeta_XBNC1 = gradients
  ddecay_BLN = _join(ddecay_XBNC1, decay_BLN[..., None])[..., 0]
  dbeta_BLN = _join(dbeta_XBNC1, beta_BLN[..., None])[..., 0]
  return (
    _join(dq_XBNCH, q_BLNH),
    _join(dk_XBNCH, k_BLNH),
    _join(dv_XBNCP, v_BLNP),
    # `_silenced` turned over.
    *_silenced(ddecay_BLN, dbeta_BLN, segments_BL),
  )


def _gradients(
  chunks, inverse_XBNCJ, s_XBNHP, ds_XBNHP, u_XBNJP, du_XBNJP, do_XBNCP
):
  """Computes the gradients of q, k, v, decay and beta, in chunks.

  With (I + A) u = b and g = (I + A)^-T du, the gradient of b is g, and that of
  A is -g u^T: that of the inverse itself is not needed.

  Args:
    chunks, inverse_XBNCJ: of `_forward`.
    s_XBNHP, ds_XBNHP: the memory at each chunk's start, and the gradient of the
      one at its end.
    u_XBNJP, du_XBNJP: what is written, and its gradient.
    do_XBNCP: the gradient of what is read.
  """
  q_XBNCH, k_XBNCH, _, beta_XBNC1, before_XBNCJ, into_XBNC1 = chunks
  k_XBNJH = k_XBNCH
  alike_XBNCJ, a_XBNCJ = _overlaps(chunks)
  # The letters of the inverse trade places: it is turned over.
  inverse_XBNJC = inverse_XBNCJ
  g_XBNCP = _product('XBNJC,XBNJP->XBNCP', inverse_XBNJC, du_XBNJP)
  da_XBNCJ = -jnp.tril(_product('XBNCP,XBNJP->XBNCJ', g_XBNCP, u_XBNJP), -1)
  dscores_XBNCJ = _product('XBNCP,XBNJP->XBNCJ', do_XBNCP, u_XBNJP)
  # Of what reads the chunk's start, and of what is written to its end.
  read_XBNCH = _product('XBNCP,XBNHP->XBNCH', do_XBNCP, s_XBNHP)
  erased_XBNCH = -_product('XBNCP,XBNHP->XBNCH', g_XBNCP, s_XBNHP)
  written_XBNJH = _product('XBNJP,XBNHP->XBNJH', u_XBNJP, ds_XBNHP)
  _, out_XBNJ1, _ = _ends(chunks)

  dqk_XBNCJ = dscores_XBNCJ * before_XBNCJ
  dq_XBNCH = into_XBNC1 * read_XBNCH
  dq_XBNCH += _product('XBNCJ,XBNJH->XBNCH', dqk_XBNCJ, k_XBNJH)
  dalike_XBNCJ = da_XBNCJ * beta_XBNC1 * before_XBNCJ
  # k stands on both sides of k k^T.
  dalike_XBNCJ += jnp.swapaxes(dalike_XBNCJ, 3, 4)
  dk_XBNJH = _product('XBNCJ,XBNCH->XBNJH', dqk_XBNCJ, q_XBNCH)
  dk_XBNCH = dk_XBNJH + out_XBNJ1 * written_XBNJH
  dk_XBNCH += beta_XBNC1 * into_XBNC1 * erased_XBNCH
  dk_XBNCH += _product('XBNCJ,XBNJH->XBNCH', dalike_XBNCJ, k_XBNJH)

  def along(x_XBNCH):
    return jnp.sum(x_XBNCH, axis=4, keepdims=True)

  dbeta_XBNC1 = along(g_XBNCP * _missed(chunks, s_XBNHP))
  dbeta_XBNC1 += along(da_XBNCJ * before_XBNCJ * alike_XBNCJ)

  # Gradients of logarithms: of `exp`, a gradient times the value.
  dbetween_XBNCJ = da_XBNCJ * a_XBNCJ + dscores_XBNCJ * _scores(chunks)
  dout_XBN1J = jnp.swapaxes(along(out_XBNJ1 * k_XBNJH * written_XBNJH), 3, 4)
  dbetween_XBNCJ = dbetween_XBNCJ.at[..., -1:, :].add(dout_XBN1J)
  dinto_XBNC1 = along(
    q_XBNCH * read_XBNCH + beta_XBNC1 * k_XBNCH * erased_XBNCH
  )
  dthrough_XBN11 = jnp.sum(s_XBNHP * ds_XBNHP, axis=(3, 4), keepdims=True)
  dinto_XBNC1 = dinto_XBNC1.at[..., -1:, :].add(dthrough_XBN11) * into_XBNC1
  ddecay_XBNC1 = _decays_back(dbetween_XBNCJ, dinto_XBNC1)
  return dq_XBNCH, dk_XBNCH, beta_XBNC1 * g_XBNCP, ddecay_XBNC1, dbeta_XBNC1


def _decays_back(dbetween_XBNCJ, dwhole_XBNC1):
  """Turns `_decays` over: a decay lies between all J before and C from it on.

  Again each sum is added up by itself.
  """
  C = dbetween_XBNCJ.shape[3]
  reached_CI, passed_IJ = jnp.tri(C), jnp.tri(C, k=-1)
  d_XBNCI = _product('XBNCJ,IJ->XBNCI', dbetween_XBNCJ, passed_IJ)
  d_XBNCI = (d_XBNCI + dwhole_XBNC1) * reached_CI[None, None, None]
  return jnp.swapaxes(jnp.sum(d_XBNCI, axis=3, keepdims=True), 3, 4)


_chunked.defvjp(_forward, _backward)
