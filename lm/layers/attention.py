"""Multi-head attention with grouped keys and a cache."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import linear, norms, positions

# Half the least float32: finite, so that a row that may look nowhere (padding)
# gives a uniform softmax and not nan, and far from overflow when added to.
MASKED = float(jnp.finfo(jnp.float32).min) / 2


def causal_mask(
  query_segments_BL: jax.Array,
  key_segments_BS: jax.Array,
  first: jax.Array | int = 0,
) -> jax.Array:
  """Lets each position see the earlier ones of its own document.

  Args:
    query_segments_BL: document of each query.
    key_segments_BS: document of each key; equal numbers see each other.
    first: slot of the first query among the keys, where a cache precedes it.

  Returns:
    bool [B, 1, L, S], True where a query may look.
  """
  L, S = query_segments_BL.shape[1], key_segments_BS.shape[1]
  slots_L1 = first + jnp.arange(L)[:, None]
  causal_LS = jnp.arange(S)[None, :] <= slots_L1
  same_BLS = query_segments_BL[:, :, None] == key_segments_BS[:, None, :]
  return (same_BLS & causal_LS[None])[:, None]


def attend(
  q_BLNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask_B1LS: jax.Array,
  *,
  softcap: float | None = None,
  operands: str = 'float32',
) -> jax.Array:
  """Mixes values by the softmax of scaled dot products: [B, L, N, H].

  N/K neighbouring query heads share a key head.

  Args:
    softcap: bounds the scores by `softcap * tanh(score / softcap)`; None is
      off. Reference: Gemma 2, arXiv 2408.00118, section 2.
    operands: dtype that matrix products read.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1; grouped keys:
  Ainslie et al. 2023, arXiv 2305.13245.
  """
  B, L, N, H = q_BLNH.shape
  K = k_BSKH.shape[2]
  # Scale q rather than the scores: L * H numbers instead of L * S.
  q_BLKGH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H)
  # Heads before positions: what batched products want, and small next to S.
  out_BKGLH = _mix(
    jnp.einsum('BLKGH->BKGLH', q_BLKGH),
    jnp.einsum('BSKH->BKSH', k_BSKH),
    jnp.einsum('BSKH->BKSH', v_BSKH),
    mask_B1LS[:, :, None],
    softcap,
    operands,
  )
  out_BLKGH = jnp.einsum('BKGLH->BLKGH', out_BKGLH)
  return out_BLKGH.reshape(B, L, N, H).astype(q_BLNH.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _mix(q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, softcap, operands) -> jax.Array:
  """Mixes values: float32 [B, K, G, L, H].

  The rule for gradients keeps one array of the size of the scores, in the
  operands' type, where autodiff keeps several in float32. Reference: Dao et al.
  2022, arXiv 2205.14135, appendix B.2.
  """
  return _forward(q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, softcap, operands)[0]


def _scores(q_BKGLH, k_BKSH, softcap):
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  scores_BKGLS = linear.multiply(
    'BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, 'float32'
  )
  if softcap is not None:
    scores_BKGLS = softcap * jnp.tanh(scores_BKGLS / softcap)
  return scores_BKGLS


def _forward(q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, softcap, operands):
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = [jnp.zeros((0,), x.dtype) for x in (q_BKGLH, k_BKSH, v_BKSH)]
  q_BKGLH, k_BKSH, v_BKSH = (
    x.astype(operands) for x in (q_BKGLH, k_BKSH, v_BKSH)
  )
  scores_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
  scores_BKGLS = jnp.where(mask_B11LS, scores_BKGLS, MASKED)
  weights_BKGLS = jax.nn.softmax(scores_BKGLS, axis=-1).astype(operands)
  out_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', weights_BKGLS, v_BKSH, 'float32'
  )
  kept = q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH, kinds
  return out_BKGLH, kept


def _backward(softcap, operands, residuals, cotangent_BKGLH):
  q_BKGLH, k_BKSH, v_BKSH, mask_B11LS, weights_BKGLS, out_BKGLH, kinds = (
    residuals
  )
  # How far a row's gain lies above its mean: sum(weights * gain) = out . d out.
  mean_BKGL1 = jnp.sum(cotangent_BKGLH * out_BKGLH, axis=-1, keepdims=True)
  cotangent_BKGLH = cotangent_BKGLH.astype(operands)
  dv_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', weights_BKGLS, cotangent_BKGLH, kinds[2].dtype
  )
  gain_BKGLS = linear.multiply(
    'BKGLH,BKSH->BKGLS', cotangent_BKGLH, v_BKSH, 'float32'
  )
  ds_BKGLS = weights_BKGLS.astype(jnp.float32) * (gain_BKGLS - mean_BKGL1)
  # Weights are 0 there but in a row that may look nowhere.
  ds_BKGLS = jnp.where(mask_B11LS, ds_BKGLS, 0)
  if softcap is not None:
    capped_BKGLS = _scores(q_BKGLH, k_BKSH, softcap)
    ds_BKGLS *= 1 - jnp.square(capped_BKGLS / softcap)
  ds_BKGLS = ds_BKGLS.astype(operands)
  dq_BKGLH = linear.multiply(
    'BKGLS,BKSH->BKGLH', ds_BKGLS, k_BKSH, kinds[0].dtype
  )
  dk_BKSH = linear.multiply(
    'BKGLS,BKGLH->BKSH', ds_BKGLS, q_BKGLH, kinds[1].dtype
  )
  return dq_BKGLH, dk_BKSH, dv_BKSH, None


_mix.defvjp(_forward, _backward)


class Attention(nn.Module):
  """Self-attention: projections, positions, optional QK-norm and cache.

  Attributes:
    heads: N.
    kv_heads: K, which divides N.
    head_width: H.
    bias: adds biases to the four projections.
    qk_norm: normalizes queries and keys per head before rotation. Reference:
      Dehghani et al. 2023, arXiv 2302.05442, section 2.1.
    rope_base: base of the rotary frequencies; None has no rotation.
    softcap: see `attend`.
    kernel_init, output_init: of q, k, v and of the output projection.
    dtype, operands: result and operand types of products.
  """

  heads: int
  kv_heads: int
  head_width: int
  bias: bool
  qk_norm: bool
  rope_base: float | None
  softcap: float | None
  kernel_init: nn.initializers.Initializer
  output_init: nn.initializers.Initializer
  dtype: str
  operands: str

  @nn.compact
  def __call__(self, x_BLD, positions_BL, mask_B1LS, cache):
    """Returns [B, L, D] and the cache with this call's keys and values.

    `cache` is None or `{'k', 'v'}` [B, S, K, H] and `index`, the slot that the
    first of the L positions is written to.
    """
    D, N, K, H = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width

    def project(name, heads):
      kernel_DNH = self.param(name, self.kernel_init, (D, heads, H))
      y_BLNH = linear.contract(
        'BLD,DNH->BLNH', x_BLD, kernel_DNH, self.operands, self.dtype
      )
      if self.bias:
        bias_NH = self.param(f'{name}_bias', nn.initializers.zeros, (heads, H))
        y_BLNH += bias_NH.astype(self.dtype)[None, None]
      return y_BLNH

    q_BLNH, k_BLKH, v_BLKH = project('q', N), project('k', K), project('v', K)
    if self.qk_norm:
      q_BLNH = norms.RMSNorm(name='q_norm')(q_BLNH)
      k_BLKH = norms.RMSNorm(name='k_norm')(k_BLKH)
    if self.rope_base is not None:
      q_BLNH = positions.rope(q_BLNH, positions_BL, self.rope_base)
      k_BLKH = positions.rope(k_BLKH, positions_BL, self.rope_base)
    k_BSKH, v_BSKH = k_BLKH, v_BLKH
    if cache is not None:
      where = (0, cache['index'], 0, 0)
      k_BSKH = jax.lax.dynamic_update_slice(cache['k'], k_BLKH, where)
      v_BSKH = jax.lax.dynamic_update_slice(cache['v'], v_BLKH, where)
      cache = {**cache, 'k': k_BSKH, 'v': v_BSKH}
    mixed_BLNH = attend(
      q_BLNH,
      k_BSKH,
      v_BSKH,
      mask_B1LS,
      softcap=self.softcap,
      operands=self.operands,
    )
    kernel_NHD = self.param('o', self.output_init, (N, H, D))
    out_BLD = linear.contract(
      'BLNH,NHD->BLD', mixed_BLNH, kernel_NHD, self.operands, self.dtype
    )
    if self.bias:
      bias_D = self.param('o_bias', nn.initializers.zeros, (D,))
      out_BLD += bias_D.astype(self.dtype)[None, None]
    return out_BLD, cache
