"""Scaled dot-product attention: by whole masks, by kernels, and of a cache."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import sharding
from lm.layers import blockwise, kernels, linear, masks

_RUNS, _SHORTEST = 4, 64  # of queries, see `_runs`


class Terms(NamedTuple):
  """Holds the terms of a softmax beside the dot products.

  Attributes:
    bias_BNLS: added to the scores, [B or 1, N, L, S]; None has none.
    sink_N: a score of each head without a value; None has none. Reference:
      OpenAI 2025, arXiv 2508.10925, section 2.2.
  """

  bias_BNLS: jax.Array | None = None
  sink_N: jax.Array | None = None


NO_TERMS = Terms()


def attend(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask | jax.Array,
  *,
  terms: Terms = NO_TERMS,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Mixes values by the softmax of scaled dot products: [B, L, N, H].

  N/K neighbouring query heads share a key head.

  Args:
    mask: bool [B, 1, L, S], True where a query may look; or a mask that holds
      it as `whole_B1LS` and tells which scores need not be computed.
    terms: of the scores.
    scale: of the dot products; None is 1 / sqrt(H).
    softcap: bounds the scores by `softcap * tanh(score / softcap)`; None is
      off. Reference: Gemma 2, arXiv 2408.00118, section 2.
    compute_dtype: dtype that matrix products read.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1; grouped keys:
  Ainslie et al. 2023, arXiv 2305.13245.
  """
  K, runs = k_BKSH.shape[1], _runs(mask, q_BLNH.shape[1], k_BKSH.shape[2])
  whole = isinstance(mask, masks.AttentionMask)
  mask_B1LS = mask.whole_B1LS if whole else mask
  assert mask_B1LS is not None
  out_BKGLH = _mix(
    _queries(q_BLNH, K) * _scale(q_BLNH, scale),
    k_BKSH,
    v_BKSH,
    mask_B1LS[:, :, None],
    _grouped(terms.bias_BNLS, K),
    _sink(terms.sink_N, K),
    _Settings(softcap, compute_dtype, runs),
  )
  return _heads_last(out_BKGLH, q_BLNH)


def attend_unmasked(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  *,
  terms: Terms = NO_TERMS,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Does what `attend` does, with no mask and no array of all scores.

  It knows no bias.
  """
  assert terms.bias_BNLS is None
  out_BKGLH = kernels.attend(
    _queries(q_BLNH, k_BKSH.shape[1]),
    k_BKSH,
    v_BKSH,
    mask,
    _sink(terms.sink_N, k_BKSH.shape[1]),
    scale=_scale(q_BLNH, scale),
    softcap=softcap,
    compute_dtype=compute_dtype,
  )
  return _heads_last(out_BKGLH, q_BLNH)


def attend_cache(
  q_BLNH: jax.Array,
  k_XHS: jax.Array,
  v_XSH: jax.Array,
  mask_B1LS: jax.Array,
  *,
  terms: Terms = NO_TERMS,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Does what `attend` does, with a cache's keys and values.

  Rows and key heads are one dimension X = B K, and keys are turned: so both
  products read the cache as it is. Otherwise XLA:CPU copies it several times
  for every token, to have an array of each product's shape.
  """
  B, L, N, _ = q_BLNH.shape
  X, H, S = k_XHS.shape
  K = X // B
  q_BKGLH = _queries(q_BLNH, K) * _scale(q_BLNH, scale)
  scores_XMS = linear.multiply(
    'XMH,XHS->XMS',
    q_BKGLH.reshape(X, -1, H).astype(compute_dtype),
    k_XHS.astype(compute_dtype),
    'float32',
  )
  weights_BKGLS = _weights(
    blockwise.capped(scores_XMS, softcap).reshape(B, K, N // K, L, S),
    mask_B1LS[:, :, None],
    _grouped(terms.bias_BNLS, K),
    _sink(terms.sink_N, K),
  )
  out_XMH = linear.multiply(
    'XMS,XSH->XMH',
    weights_BKGLS.reshape(X, -1, S).astype(compute_dtype),
    v_XSH.astype(compute_dtype),
    'float32',
  )
  return _heads_last(out_XMH.reshape(B, K, N // K, L, H), q_BLNH)


def _scale(q_BLNH, scale):
  # Of q rather than of the scores: L * H numbers instead of L * S.
  return q_BLNH.shape[-1] ** -0.5 if scale is None else scale


def _queries(q_BLNH, K):
  B, L, N, H = q_BLNH.shape
  q_BLKGH = q_BLNH.reshape(B, L, K, N // K, H)
  # Heads before positions: what batched products want, and small next to S.
  return jnp.einsum('BLKGH->BKGLH', q_BLKGH)


def _grouped(bias_BNLS, K):
  if bias_BNLS is None:
    return None
  B, N, L, S = bias_BNLS.shape
  return bias_BNLS.reshape(B, K, N // K, L, S)


def _sink(sink_N, K):
  return None if sink_N is None else sink_N.reshape(K, -1)


def _heads_last(out_BKGLH, q_BLNH):
  out_BLKGH = jnp.einsum('BKGLH->BLKGH', out_BKGLH)
  return out_BLKGH.reshape(q_BLNH.shape).astype(q_BLNH.dtype)


class _Run(NamedTuple):
  """Queries in a row, and the keys that they look at: starts and ends."""

  first: int
  last: int
  first_key: int
  last_key: int

  def keys(self, x, axis):
    """Takes the keys' part of an array."""
    return jax.lax.slice_in_dim(x, self.first_key, self.last_key, axis=axis)

  def queries(self, x, axis):
    """Takes the queries' part of an array."""
    return jax.lax.slice_in_dim(x, self.first, self.last, axis=axis)

  def mask(self, mask_B11LS):
    """Takes the part that says which of the queries see which of the keys."""
    return self.keys(self.queries(mask_B11LS, 3), 4)

  def filled(self, x_BKsH, S):
    """Puts zeros where all other keys stand."""
    width = [(0, 0), (0, 0), (self.first_key, S - self.last_key), (0, 0)]
    return jnp.pad(x_BKsH, width)


class _Settings(NamedTuple):
  """Holds the settings that `_mix` is compiled for."""

  softcap: float | None
  compute_dtype: str
  runs: tuple[_Run, ...]


def _runs(mask, L: int, S: int) -> tuple[_Run, ...]:
  """Cuts queries into runs that need not look at all keys.

  Of a causal text, a quarter of the queries looks at the keys up to its own end
  alone: five eighths of all scores. On a CPU a step is 1.04 to 1.07 times as
  fast with it; a GPU would rather have one large product.
  """
  whole = (_Run(0, L, 0, S),)
  if not isinstance(mask, masks.AttentionMask) or not mask.causal:
    return whole
  # A length that an export leaves open cannot be cut.
  if mask.prefix is not None or not isinstance(L, int):
    return whole
  if sharding.platform() != 'cpu' or sharding.parts('sequence') > 1:
    return whole
  size = max(_SHORTEST, -(-L // _RUNS))
  # Documents have no gaps, so that slots are as far apart as positions.
  reach = L if mask.window is None else mask.window
  return tuple(
    _Run(n, min(n + size, L), max(0, n + 1 - reach), min(n + size, L))
    for n in range(0, L, size)
  )


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _mix(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, sink_KG, settings: _Settings
) -> jax.Array:
  """Mixes values: float32 [B, K, G, L, H].

  The rule for gradients keeps one array of the size of the scores, of type
  `compute_dtype`, where autodiff keeps several in float32. Reference: Dao et
  al. 2022, arXiv 2205.14135, appendix B.2.
  """
  given = q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, sink_KG
  return _forward(*given, settings)[0]


def _scores(q_BKGLH, k_BKSH, softcap):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  return blockwise.capped(
    linear.multiply('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, 'float32'), softcap
  )


def _weights(scores_BKGLS, mask_B11LS, bias_BKGLS, sink_KG):
  if bias_BKGLS is not None:
    scores_BKGLS += bias_BKGLS
  scores_BKGLS = jnp.where(mask_B11LS, scores_BKGLS, masks.MASKED)
  if sink_KG is None:
    return jax.nn.softmax(scores_BKGLS, axis=-1)
  sink_1KG11 = sink_KG[None, :, :, None, None]
  highest_BKGL1 = jnp.max(scores_BKGLS, axis=-1, keepdims=True)
  highest_BKGL1 = jnp.maximum(highest_BKGL1, sink_1KG11)
  weights_BKGLS = jnp.exp(scores_BKGLS - highest_BKGL1)
  sum_BKGL1 = jnp.sum(weights_BKGLS, axis=-1, keepdims=True)
  return weights_BKGLS / (sum_BKGL1 + jnp.exp(sink_1KG11 - highest_BKGL1))


def _forward(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, sink_KG, settings
):
  softcap, compute_dtype, runs = settings
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = [jnp.zeros((0,), x.dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)]
  shape = None if bias_BKGLS is None else jnp.zeros((len(bias_BKGLS), 0))
  q_BKGLH, k_BKSH, v_BKSH = (
    x.astype(compute_dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)
  )
  outs, weights, sunk = [], [], []
  for run in runs:
    bias_BKGls = None
    if bias_BKGLS is not None:
      bias_BKGls = run.keys(run.queries(bias_BKGLS, 3), 4)
    weights_BKGls = _weights(
      _scores(run.queries(q_BKGLH, 3), run.keys(k_BKSH, 2), softcap),
      run.mask(mask_B11LS),
      bias_BKGls,
      sink_KG,
    )
    if sink_KG is not None:  # what the sinks have
      sunk.append(1 - jnp.sum(weights_BKGls, axis=-1))
    weights_BKGls = weights_BKGls.astype(compute_dtype)
    out_BKGlH = linear.multiply(
      'BKGls,BKsH->BKGlH', weights_BKGls, run.keys(v_BKSH, 2), 'float32'
    )
    weights.append(weights_BKGls)
    outs.append(out_BKGlH)
  out_BKGLH = jnp.concatenate(outs, axis=3)
  kept = q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights, sunk, out_BKGLH
  return out_BKGLH, (kept, kinds, shape)


def _backward(settings, residuals, cotangent_BKGLH):
  softcap, compute_dtype, runs = settings
  kept, kinds, shape = residuals
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights, sunk, out_BKGLH = kept
  S = k_BKSH.shape[2]
  # How far a row's gain lies above its mean: sum(weights * gain) = out . d out.
  mean_BKGL1 = jnp.sum(cotangent_BKGLH * out_BKGLH, axis=-1, keepdims=True)
  cotangent_BKGLH = cotangent_BKGLH.astype(compute_dtype)
  dq, dk, dv, dbias = [], [], [], []
  for run, weights_BKGls in zip(runs, weights, strict=True):
    q_BKGlH, k_BKsH = run.queries(q_BKGLH, 3), run.keys(k_BKSH, 2)
    cotangent_BKGlH = run.queries(cotangent_BKGLH, 3)
    dv_BKsH = linear.multiply(
      'BKGls,BKGlH->BKsH', weights_BKGls, cotangent_BKGlH, kinds[2].dtype
    )
    gain_BKGls = linear.multiply(
      'BKGlH,BKsH->BKGls', cotangent_BKGlH, run.keys(v_BKSH, 2), 'float32'
    )
    ds_BKGls = weights_BKGls.astype(jnp.float32) * (
      gain_BKGls - run.queries(mean_BKGL1, 3)
    )
    # Weights are 0 there but in a row that may look nowhere.
    ds_BKGls = jnp.where(run.mask(mask_B11LS), ds_BKGls, 0)
    if shape is not None:
      left, right = run.first_key, S - run.last_key
      dbias.append(jnp.pad(ds_BKGls, [(0, 0)] * 4 + [(left, right)]))
    if softcap is not None:
      capped_BKGls = _scores(q_BKGlH, k_BKsH, softcap)
      ds_BKGls *= 1 - jnp.square(capped_BKGls / softcap)
    ds_BKGls = ds_BKGls.astype(compute_dtype)
    dq_BKGlH = linear.multiply(
      'BKGls,BKsH->BKGlH', ds_BKGls, k_BKsH, kinds[0].dtype
    )
    dk_BKsH = linear.multiply(
      'BKGls,BKGlH->BKsH', ds_BKGls, q_BKGlH, kinds[1].dtype
    )
    dq.append(dq_BKGlH)
    dk.append(run.filled(dk_BKsH, S))
    dv.append(run.filled(dv_BKsH, S))
  dbias_BKGLS = None
  if shape is not None:
    dbias_BKGLS = jnp.concatenate(dbias, axis=3)
    if len(shape) == 1:
      dbias_BKGLS = jnp.sum(dbias_BKGLS, axis=0, keepdims=True)
  dq_BKGLH = jnp.concatenate(dq, axis=3)
  dsink_KG = None
  if sunk:  # whose values are 0, so that only the mean counts
    dsink_BKGL = -jnp.concatenate(sunk, axis=3) * mean_BKGL1[..., 0]
    dsink_KG = jnp.sum(dsink_BKGL, axis=(0, 3))
  return dq_BKGLH, sum(dk), sum(dv), None, dbias_BKGLS, dsink_KG


_mix.defvjp(_forward, _backward)
