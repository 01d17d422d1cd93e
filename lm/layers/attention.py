"""Multi-head attention with grouped keys and a cache."""

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
  # Scores and softmax in float32: exp of a bfloat16 score is off by percents.
  scores_BKGLS = linear.contract(
    'BLKGH,BSKH->BKGLS', q_BLKGH, k_BSKH, operands, 'float32'
  )
  if softcap is not None:
    scores_BKGLS = softcap * jnp.tanh(scores_BKGLS / softcap)
  scores_BKGLS = jnp.where(mask_B1LS[:, :, None], scores_BKGLS, MASKED)
  weights_BKGLS = jax.nn.softmax(scores_BKGLS, axis=-1)
  out_BLKGH = linear.contract(
    'BKGLS,BSKH->BLKGH', weights_BKGLS, v_BSKH, operands, str(q_BLNH.dtype)
  )
  return out_BLKGH.reshape(B, L, N, H)


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
