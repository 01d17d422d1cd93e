"""Scaled dot-product attention: by whole masks, by kernels, and of a cache."""

from functools import partial

import jax
import jax.numpy as jnp

from lm.layers import blockwise, kernels, linear, masks


def attend(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask_B1LS: jax.Array,
  *,
  bias_BNLS: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Mixes values by the softmax of scaled dot products: [B, L, N, H].

  N/K neighbouring query heads share a key head.

  Args:
    bias_BNLS: added to the scores, [B or 1, N, L, S]; None has none.
    scale: of the dot products; None is 1 / sqrt(H).
    softcap: bounds the scores by `softcap * tanh(score / softcap)`; None is
      off. Reference: Gemma 2, arXiv 2408.00118, section 2.
    compute_dtype: dtype that matrix products read.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1; grouped keys:
  Ainslie et al. 2023, arXiv 2305.13245.
  """
  K = k_BKSH.shape[1]
  out_BKGLH = _mix(
    _queries(q_BLNH, K) * _scale(q_BLNH, scale),
    k_BKSH,
    v_BKSH,
    mask_B1LS[:, :, None],
    _grouped(bias_BNLS, K),
    softcap,
    compute_dtype,
  )
  return _heads_last(out_BKGLH, q_BLNH)


def attend_unmasked(
  q_BLNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: masks.AttentionMask,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  compute_dtype: str = 'float32',
) -> jax.Array:
  """Does what `attend` does, with no mask and no array of all scores."""
  out_BKGLH = kernels.attend(
    _queries(q_BLNH, k_BKSH.shape[1]),
    k_BKSH,
    v_BKSH,
    mask,
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
  bias_BNLS: jax.Array | None = None,
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
    _grouped(bias_BNLS, K),
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


def _heads_last(out_BKGLH, q_BLNH):
  out_BLKGH = jnp.einsum('BKGLH->BLKGH', out_BKGLH)
  return out_BLKGH.reshape(q_BLNH.shape).astype(q_BLNH.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _mix(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
) -> jax.Array:
  """Mixes values: float32 [B, K, G, L, H].

  The rule for gradients keeps one array of the size of the scores, of type
  `compute_dtype`, where autodiff keeps several in float32. Reference: Dao et
  al. 2022, arXiv 2205.14135, appendix B.2.
  """
  return _forward(
    q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
  )[0]


def _scores(q_BKGLH, k_BKSH, softcap):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  return blockwise.capped(
    linear.multiply('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, 'float32'), softcap
  )


def _weights(scores_BKGLS, mask_B11LS, bias_BKGLS):
  if bias_BKGLS is not None:
    scores_BKGLS += bias_BKGLS
  scores_BKGLS = jnp.where(mask_B11LS, scores_BKGLS, masks.MASKED)
  return jax.nn.softmax(scores_BKGLS, axis=-1)


def _forward(
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, bias_BKGLS, softcap, compute_dtype
):
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = [jnp.zeros((0,), x.dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)]
  shape = None if bias_BKGLS is None else jnp.zeros((len(bias_BKGLS), 0))
  q_BKGLH, k_BKSH, v_BKSH = (
    x.astype(compute_dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)
  )
  scores_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
  weights_BKGLS = _weights(scores_BKGLS, mask_B11LS, bias_BKGLS)
  weights_BKGLS = weights_BKGLS.astype(compute_dtype)
  out_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', weights_BKGLS, v_BKSH, 'float32'
  )
  kept = q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH
  return out_BKGLH, (kept, kinds, shape)


def _backward(softcap, compute_dtype, residuals, cotangent_BKGLH):
  kept, kinds, shape = residuals
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH = kept
  # How far a row's gain lies above its mean: sum(weights * gain) = out . d out.
  mean_BKGL1 = jnp.sum(cotangent_BKGLH * out_BKGLH, axis=-1, keepdims=True)
  cotangent_BKGLH = cotangent_BKGLH.astype(compute_dtype)
  dv_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', weights_BKGLS, cotangent_BKGLH, kinds[2].dtype
  )
  gain_BKGLS = linear.multiply(
    'BKGLH,BKSH->BKGLS', cotangent_BKGLH, v_BKSH, 'float32'
  )
  ds_BKGLS = weights_BKGLS.astype(jnp.float32) * (gain_BKGLS - mean_BKGL1)
  # Weights are 0 there but in a row that may look nowhere.
  ds_BKGLS = jnp.where(mask_B11LS, ds_BKGLS, 0)
  dbias_BKGLS = ds_BKGLS
  if shape is None:
    dbias_BKGLS = None
  elif len(shape) == 1:
    dbias_BKGLS = jnp.sum(ds_BKGLS, axis=0, keepdims=True)
  if softcap is not None:
    capped_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
    ds_BKGLS *= 1 - jnp.square(capped_BKGLS / softcap)
  ds_BKGLS = ds_BKGLS.astype(compute_dtype)
  dq_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', ds_BKGLS, k_BKSH, kinds[0].dtype
  )
  dk_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', ds_BKGLS, q_BKGLH, kinds[1].dtype
  )
  return dq_BKGLH, dk_BKSH, dv_BKSH, None, dbias_BKGLS


_mix.defvjp(_forward, _backward)
